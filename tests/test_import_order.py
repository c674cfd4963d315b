"""The tree is the pipeline: imports go one way, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
ROWS = (  # bottom to top: a file imports from the rows below its own
    "errors version",
    "tables",
    "data evaluation models",  # a package's name alone is its __init__, if its files have rows
    "models.receptive models.residual",
    "models.resnet models.davidnet models.speednet models.trace",
    "models.zoo models.budget",
    "training",
    "training.muon training.sam training.files training.younger training.kernels",
    "training.twin training.convolve training.winograd training.graphs",
    "training.fused training.small_maps",
    "training.aligned training.fuse",
    "training.weights",
    "training.engine training.optim training.distributed",
    "training.recipe",
    "training.recipes",
    "training.batch",
    "training.teacher training.proxy",
    "training.loop",
    "training.checkpoint training.rehearse",
    "training.folder",
    "training.run",
    "ledger tracking",  # what a run left, and who is told of it
    "lr_curve predict",
    "lr_finder lr_plot compare bench search export report",
    "campaign",
    "cli",
    "leanres __main__",
)
STRANGERS = {"data", "evaluation", "models"}  # they meet through tensors, in the rows above
HEIGHT = {entry: height for height, row in enumerate(ROWS) for entry in row.split()}
SPREAD = {"leanres"} | {entry.split(".")[0] for entry in HEIGHT if "." in entry}


def place(name: str) -> str:
    """The entry of ROWS that holds a name: "data.split.Split" -> "data"."""
    parts = name.removeprefix("leanres.").split(".")
    heads = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((head for head in heads if head in HEIGHT), "leanres")


def has_place(module: str) -> bool:
    """Whether ROWS says where the file stands; in a package over several rows each is named."""
    return place(module) == module or place(module) not in SPREAD


def imports(source: str, package: str) -> Iterator[str]:
    """Every module of leanres that `source`, a file of `package`, imports, at any depth in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "leanres")


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What `module` imports of the tree, and may not."""
    package = f"leanres.{module}" if is_package else f"leanres.{module}".rpartition(".")[0]
    targets = {place(name) for name in imports(source, package)}
    return sorted(target for target in targets if not allowed(module, target))


def allowed(module: str, target: str) -> bool:
    if target == place(module):
        return True  # the files of one entry may know each other
    packages = {module.split(".")[0], target.split(".")[0]}
    strangers = len(packages) == 2 and packages <= STRANGERS
    return HEIGHT[target] < HEIGHT[place(module)] and not strangers


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((SRC / "leanres").rglob("*.py")):
        parts = path.relative_to(SRC / "leanres").with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "leanres", path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_every_file_imports_only_from_below(module, path):
    assert has_place(module), f"leanres.{module} has no place in the order: give it one in ROWS"
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("errors", "from leanres.registry import Table", ["tables"]),
        ("tables", "from leanres import __version__", ["leanres"]),
        ("data.split", "from leanres.models import resnet", ["models.resnet"]),
        ("data.split", "import leanres.training", ["training"]),
        ("evaluation.metrics", "from leanres.data.split import Split", ["data"]),
        ("models.budget", "from ..evaluation import metrics", ["evaluation"]),
        ("models", "from leanres.models.zoo import MODELS", ["models.zoo"]),
        ("models.resnet", "from .zoo import MODELS", ["models.zoo"]),
        ("models.resnet", "from .davidnet import Block", ["models.davidnet"]),
        (
            "training.loop",
            "def f():\n  import leanres.runs.checkpoint",
            ["training.checkpoint"],
        ),
        ("training.engine", "from leanres.training.recipe import R", ["training.recipe"]),
        ("search", "if 0:\n  from leanres.report.page import render", ["report"]),
        ("predict", "from leanres import cli, errors", ["cli"]),
    ],
)
def test_an_import_against_the_order_is_caught_however_it_is_written(module, source, caught):
    assert violations(module, source) == caught


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("cli", "import torch, leanres.runs.predictor\nfrom leanres.data import sources", False),
        ("data.sources", "from .split import Split\nfrom ..errors import UserError", False),
        ("models.zoo", "from leanres.models import resnet, davidnet", False),
        ("models.resnet", "from leanres.models import ModelConfig", False),
        ("data", "from .split import Split", True),
        ("training.checkpoint", "from leanres.training.loop import TrainState", False),
        ("report.page", "from leanres.report import plots", False),
        ("leanres", "from .training.recipe import RECIPES", True),
    ],
)
def test_an_import_along_the_order_passes(module, source, is_package):
    assert violations(module, source, is_package) == []


@pytest.mark.parametrize(
    ("module", "placed"),
    [
        ("training.callbacks", False),
        ("models.extra", False),
        ("utils", False),
        ("training.loop", True),
        ("training", True),
        ("data.anything", True),
        ("cli", True),
    ],
)
def test_a_new_file_needs_a_place_where_files_have_one_each(module, placed):
    assert has_place(module) == placed


def test_the_command_line_says_what_it_can_do_without_importing_torch():
    code = (
        "import sys; sys.argv = ['leanres', '--help']\n"
        "import leanres\nfrom leanres.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
