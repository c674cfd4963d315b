"""Write docs/commands.md from the command line itself: `python docs/commands.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from leanres.cli import app

TITLE = """# Commands

What `leanres COMMAND --help` says, on one page. Written by `make reference`.
"""


def page() -> str:
    """An index of the commands, then each with its arguments, options and defaults."""
    found = list(commands("leanres", typer.main.get_command(app)))[1:]
    lines = [TITLE, "| command | does |", "|---|---|"]
    lines += [f"| [`{n}`](#{n.replace(' ', '-')}) | {c.help.splitlines()[0]} |" for n, c in found]
    for name, command in found:
        text = re.sub(r"^Example: (.*)$", r"Example: `\1`", command.help, flags=re.MULTILINE)
        lines += [f"\n## {name}\n\n{text}", "\n| option | is | default |", "|---|---|---|"]
        lines += [row(option) for option in command.params if option.help]
    return "\n".join(lines) + "\n"


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, sub in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {child}", sub)


def row(option: Any) -> str:
    is_argument = not option.opts[0].startswith("-")
    names = [option.metavar or option.name.upper()] if is_argument else option.opts
    default = "" if option.default in (None, False, [], "", ...) else f"`{option.default}`"
    cells = f"`{', '.join(names)}`", option.help, "required" if option.required else default
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
