"""The written pages: commands and options exist, links resolve, generated parts are up to date."""

from __future__ import annotations

import json
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from leanres.augment.registry import AUGMENTS
from leanres.cli import app
from leanres.data.sources import SOURCES
from leanres.metrics.classification import METRICS
from leanres.models.zoo import FAMILIES
from leanres.ship.export import TARGETS
from leanres.training.optim import OPTIMIZERS
from leanres.training.recipe import Recipe
from leanres.version import __version__

ROOT = Path(__file__).resolve().parents[1]
DOCS, PACKAGE = ROOT / "docs", ROOT / "src" / "leanres"
HISTORY = (ROOT / "CHANGELOG.md", DOCS / "log.md")  # they quote commands as they were
MARKDOWN = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "weights").glob("*.md")]
PAGES = [
    *(page for page in MARKDOWN if page not in HISTORY),
    *(ROOT / "benchmarks").glob("*.toml"),
    *(ROOT / "notebooks").glob("*.ipynb"),
]
TABLES = (FAMILIES, AUGMENTS, OPTIMIZERS, SOURCES, METRICS, TARGETS)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands() -> dict[str, set[str]]:
    """Every command and its options; a group has those of its commands."""
    return {name: options(c) for name, c in typer.main.get_command(app).commands.items()}


def options(command) -> set[str]:
    own = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


def code_of(page: Path) -> str:
    """Code blocks and code spans of a Markdown page; all of any other file."""
    text = read(page)
    if page.suffix != ".md":
        return text
    blocks = [block for _, block in FENCE.findall(text)]
    return "\n".join(blocks + re.findall(r"`([^`]+)`", FENCE.sub("", text)))


def calls(text: str) -> list[tuple[str, list[str]]]:
    """Every `leanres COMMAND --option ...` in a text: the command and its options."""
    joined = text.replace("\\\n#", " ").replace("\\\n", " ")
    found = re.findall(r"(?<!from )\bleanres ([a-z][a-z-]*)((?:[^`\n\"]|\\\")*)", joined)
    return [(command, re.findall(r"(?<!\w)--[a-z][\w-]*", rest)) for command, rest in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_exists_with_its_options(page):
    known = commands()
    for command, given in calls(code_of(page)):
        assert command in known, command
        assert set(given) <= known[command], f"{command} {given}"


def test_a_wrong_command_and_option_would_be_found():
    ((command, given),) = calls("leanres trian speed --epoch 2")
    assert command not in commands()
    assert not set(given) <= commands()["train"]


@pytest.mark.parametrize("name", ["commands", "architecture"])
def test_a_generated_page_is_up_to_date(name):
    page = runpy.run_path(str(DOCS / f"{name}.py"))["page"]
    assert read(DOCS / f"{name}.md") == page(), "run `make reference`"


def test_the_reference_names_every_command():
    sections = re.findall(r"^## leanres ([a-z-]+)$", read(DOCS / "commands.md"), re.MULTILINE)
    assert sorted(sections) == sorted(commands())


def test_the_guides_python_runs(tmp_path, monkeypatch, capsys, digits):
    """On 200 digits as a user's folder of pictures."""
    for i, label in enumerate(digits.train.labels[:200].tolist()):
        folder = tmp_path / "pictures" / digits.train.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits.train.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    folder.rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in python_blocks("guide.md") if "leanres.resume" in block)
    execute(code.replace("epochs=5", "epochs=1").replace("epochs=6", "epochs=2"))
    lines = [line for line in capsys.readouterr().out.splitlines() if ".png " in line]
    assert {Path(line.split(".png ")[0]).stem for line in lines} == {
        path.stem for path in (tmp_path / "photos").iterdir()
    }


def execute(code: str) -> dict[str, Any]:
    """Run a page's Python as a file of its own; its names."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "example", "exec", dont_inherit=True), names)
    return names


def python_blocks(page: str) -> list[str]:
    return [block for language, block in FENCE.findall(read(DOCS / page)) if language == "python"]


@pytest.fixture
def tables_restored() -> Iterator[None]:
    """What an example adds to a table is removed after it."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def examples() -> dict[str, str]:
    """Each section of docs/extending.md -> its Python block."""
    sections = read(DOCS / "extending.md").split("\n## ")[1:]
    return {text.partition("\n")[0]: FENCE.findall(text)[0][1] for text in sections[1:]}


@pytest.mark.usefixtures("plugins_forgotten")
def test_a_network_an_augmentation_and_a_loss_from_one_file(tmp_path, monkeypatch, leanres):
    """The file and the commands are those of docs/extending.md, its first section."""
    monkeypatch.chdir(tmp_path)
    section = read(DOCS / "extending.md").split("\n## ")[1]
    assert section.startswith("One file of your own")
    (_, code), (_, commands) = FENCE.findall(section)
    Path("mine.py").write_text(code)
    outputs = []
    for line in commands.replace("\\\n", " ").strip().splitlines():
        done = leanres(*shlex.split(line)[1:])
        assert done.code == 0, done.err
        outputs.append(done.out)
    assert "within the budget: params" in outputs[0]
    assert "receptive field: unknown" in outputs[0]
    info = json.loads(Path("runs/net/run.json").read_text())
    assert info["recipe"]["loss"] == ["mine:focal", {"gamma": 1.5}]
    assert info["recipe"]["augment"][1] == ["mine:speckle", {"p": 0.05}]
    assert info["result"]["accuracy"] > 0.2  # of ten classes
    assert Path("net.onnx").stat().st_size > 10_000


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("name", examples())
def test_every_example_of_extending_runs_and_adds_one_entry(name, tmp_path, monkeypatch, on_a_gpu):
    monkeypatch.chdir(tmp_path)
    before = [set(table) for table in TABLES]
    names = execute(examples()[name])
    added = [set(table) - known for table, known in zip(TABLES, before, strict=True)]
    assert sum(map(len, added)) == 1
    assert 0 < names["result"]["accuracy"] < 1
    for optimizer in added[TABLES.index(OPTIMIZERS)]:
        (made,) = OPTIMIZERS[optimizer](on_a_gpu, Recipe())
        assert all(group["capturable"] for group in made.param_groups)


def test_extending_has_one_example_of_each_kind():
    kinds = ("model", "augmentation", "optimizer", "source of images", "metric", "export target")
    assert list(examples()) == [f"A{'n' * (kind[0] in 'aeiou')} {kind}" for kind in kinds]


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_every_link_to_a_file_or_heading_leads_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The headings of a page as a Markdown host links to them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_name_in_the_architecture_exists():
    page = FENCE.sub("", read(DOCS / "architecture.md").partition("## Every file")[0])
    sources = "\n".join(map(read, PACKAGE.rglob("*.py")))
    for name in sorted({*re.findall(r"`([\w./]+)`", page)} - {"..."}):
        if "/" in name or name.endswith(".py"):
            assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
        elif f'"{name}"' in sources:
            continue  # a file of a run
        elif "." in name and (PACKAGE / name.partition(".")[0]).is_dir():
            assert pkgutil.resolve_name(f"leanres.{name}"), name
        elif name.isupper():
            assert re.search(rf"^{name}\b.* = ", sources, re.MULTILINE), name
        else:
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", sources), name


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS.glob("*.md")], ids=name_of)
def test_code_blocks_have_80_columns(page):
    lines = [line for _, block in FENCE.findall(read(page)) for line in block.splitlines()]
    assert [line for line in lines if len(line) > 80] == []


def test_make_needs_nothing_outside_the_checkout():
    assert "../" not in read(ROOT / "Makefile")


def test_the_workflow_tests_every_system_and_python_that_the_package_declares():
    jobs = yaml.safe_load(read(ROOT / ".github" / "workflows" / "ci.yml"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    declared = re.findall(r"Python :: (3\.\d+)", read(ROOT / "pyproject.toml"))
    assert matrix["python"] == declared
    steps = [step for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in steps)


def test_the_citation_has_the_packages_version():
    assert yaml.safe_load(read(ROOT / "CITATION.cff"))["version"] == __version__
