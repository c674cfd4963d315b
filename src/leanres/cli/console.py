"""What commands show: one console for all of them, and pictures in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from leanres.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

PICTURES = (".png", ".svg", ".pdf")


def console(stderr: bool = False) -> Console:
    """A console that takes names as they are, and wraps nothing that goes to a file or a pipe."""
    from rich.console import Console  # a sixth of the time of --help

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 10_000
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def check_picture(option: str, path: Path | None) -> None:
    """Refuse a file that no picture can be drawn into, before there is one: UserError."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path}: give a file that ends in {', '.join(PICTURES)}")


def save_picture(drawing: Figure, path: Path) -> None:
    """Write a matplotlib figure. UserError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
