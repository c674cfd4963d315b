"""The tree is the pipeline: imports go one way, no subpackage has a circle, help needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
ROWS = (  # bottom to top: a file imports from its own subpackage and from the rows below
    "errors version",
    "plugins",
    "registry",
    "io",
    "data augment models metrics",
    "kernels",
    "training",
    "runs",
    "trials lr_finder report ship bench",
    "cli",
    "api",
    "leanres __main__",
)
HEIGHT = {subpackage: height for height, row in enumerate(ROWS) for subpackage in row.split()}


def subpackage(module: str) -> str:
    """A module's subpackage: "leanres.data.split" -> "data", the package's own -> "leanres"."""
    parts = module.removeprefix("leanres").strip(".").split(".")
    return parts[0] or "leanres"


def imports(source: str, package: str, runtime: bool = False) -> Iterator[str]:
    """Every module of leanres that `source`, a file of `package`, imports, at any depth in it.

    With `runtime` those under `if TYPE_CHECKING:` are left out: they are never executed.
    """
    for node in _nodes(ast.parse(source), runtime):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "leanres")


def _nodes(node: ast.AST, runtime: bool) -> Iterator[ast.AST]:
    yield node
    if runtime and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, runtime)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """The subpackages that `module` imports from, and may not."""
    name = f"leanres.{module}" if module != "leanres" else module
    package = name if is_package else name.rpartition(".")[0]
    own, targets = subpackage(module), {subpackage(name) for name in imports(source, package)}
    return sorted(t for t in targets if t != own and HEIGHT.get(t, 99) >= HEIGHT[own])


def modules() -> dict[str, Path]:
    """Every module of the package -> its file."""
    found = {}
    for path in sorted((SRC / "leanres").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def graph(subpackage_name: str) -> dict[str, set[str]]:
    """Each module of a subpackage -> the modules of the subpackage that it imports when it runs."""
    own = {name: path for name, path in modules().items() if subpackage(name) == subpackage_name}
    edges: dict[str, set[str]] = {}
    for name, path in own.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        heads = (
            next((h for h in (target, target.rpartition(".")[0]) if h in own), None)
            for target in imports(path.read_text(), package, runtime=True)
        )
        edges[name] = {head for head in heads if head is not None and head != name}
    return edges


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_every_file_imports_only_from_its_room_and_from_below(module, path):
    short = module.removeprefix("leanres.")
    assert subpackage(module) in HEIGHT, (
        f"{module} has no place in the order: give its subpackage one in ROWS"
    )
    assert violations(short, path.read_text(), path.name == "__init__.py") == []


def test_the_order_has_no_room_that_does_not_exist():
    assert set(HEIGHT) == {subpackage(module) for module in modules()}


@pytest.mark.parametrize("name", HEIGHT)
def test_no_room_has_a_circle(name):
    TopologicalSorter(graph(name)).prepare()  # CycleError names the circle


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("errors", "from leanres.registry import Table", ["registry"]),
        ("registry", "from leanres import __version__", ["__version__"]),
        ("data.split", "from leanres.models import resnet", ["models"]),
        ("data.split", "import leanres.training", ["training"]),
        ("metrics.classification", "from leanres.data.split import Split", ["data"]),
        ("models.cost", "from ..metrics import accuracy", ["metrics"]),
        ("training.loop", "def f():\n  import leanres.runs.checkpoint", ["runs"]),
        ("trials.search", "if 0:\n  from leanres.report.page import render", ["report"]),
        ("runs.run", "from leanres import cli, errors", ["cli"]),
    ],
)
def test_an_import_against_the_order_is_caught_however_it_is_written(module, source, caught):
    assert violations(module, source) == caught


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("cli", "import torch, leanres.runs.predictor\nfrom leanres.data import sources", True),
        ("data.split", "from .sources import load\nfrom ..errors import UserError", False),
        ("models.zoo", "from leanres.models import resnet, davidnet", False),
        ("training.loop", "from leanres.kernels import accelerate", False),
        ("leanres", "from .training.recipe import RECIPES", True),
    ],
)
def test_an_import_along_the_order_passes(module, source, is_package):
    assert violations(module, source, is_package) == []


def test_only_one_function_knows_the_kernels():
    users = {
        module
        for module, path in modules().items()
        if subpackage(module) != "kernels" and "leanres.kernels" in path.read_text()
    }
    assert users == {"leanres.training.device"}


def test_the_command_line_prints_its_help_without_importing_torch():
    code = (
        "import sys; sys.argv = ['leanres', '--help']\n"
        "import leanres\nfrom leanres.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
