"""The written pages: commands and options that exist, links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from PIL import Image

from leanres.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "log.md"}),  # that is history
    *sorted((ROOT / "weights").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.toml")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def commands() -> dict[str, set[str]]:
    """Every command and its options; a group has those of its commands."""
    return {name: options(c) for name, c in typer.main.get_command(app).commands.items()}


def options(command) -> set[str]:
    own = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


def calls(text: str) -> list[tuple[str, list[str]]]:
    """Every `leanres COMMAND --option ...` in a text: the command and its options."""
    joined = text.replace("\\\n#", " ").replace("\\\n", " ")
    found = re.findall(r"(?<!from )\bleanres ([a-z][a-z-]*)((?:[^`\n\"]|\\\")*)", joined)
    return [(command, re.findall(r"(?<!\w)--[a-z][\w-]*", rest)) for command, rest in found]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_a_page_names_exists_with_its_options(page):
    known = commands()
    for command, given in calls(page.read_text(encoding="utf-8")):
        assert command in known, command
        assert set(given) <= known[command], f"{command} {given}"


def test_the_readme_lists_every_command():
    named = {command for command, _ in calls((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert set(commands()) <= named


def test_a_wrong_command_and_option_would_be_found():
    ((command, given),) = calls("try `leanres trian speed --epoch 2`")
    assert command not in commands()
    assert not set(given) <= commands()["train"]


def test_the_guides_python_runs(tmp_path, monkeypatch, capsys, digits):
    """On 200 digits as a user's folder of pictures."""
    for i, label in enumerate(digits.train.labels[:200].tolist()):
        folder = tmp_path / "pictures" / digits.train.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits.train.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "photos").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    (code,) = (block for block in blocks if "leanres.fit" in block)
    exec(code.replace("epochs=5", "epochs=1"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(folder.iterdir()))
    assert all(line.startswith("photos/") for line in lines)


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".md"], ids=lambda p: p.name)
def test_every_link_to_a_file_leads_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
