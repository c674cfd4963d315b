"""What commands print and write: one console for all of them, tables, pictures, text files."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanres.errors import UserError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

PICTURES = (".png", ".svg", ".pdf")
PIPED = 80  # columns of a file or pipe, for tables
GAP = 2  # spaces between the columns of a table


def prepare_streams() -> None:
    """Let stdout and stderr take every text: closed ones drop it, others print "?" where they must.

    A terminal or pipe may be of an encoding that lacks a character.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell closed it: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Drop what stdout still holds: Python would try to write it again at its exit."""
    with suppress(OSError):  # stdout is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number_of_processes() -> int:
    """How many processes torchrun has started for this training."""
    given = os.environ.get("WORLD_SIZE", "1")
    return int(given) if given.isdecimal() else 1


def is_first_process() -> bool:
    """Whether this is the only process of a training, or the one that prints."""
    return number_of_processes() == 1 or os.environ.get("RANK", "0") == "0"


def console(stderr: bool = False) -> Console:
    """A console that prints names as they are; in a file or pipe of $COLUMNS or `PIPED` columns."""
    from rich.console import Console  # a sixth of the time of --help

    stream = sys.stderr if stderr else sys.stdout
    if not is_first_process():
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    given = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(given) if given.isdecimal() else PIPED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def counted(count: int, noun: str) -> str:
    """1, "epoch" -> "1 epoch"; 3, "epoch" -> "3 epochs"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def say(text: object = "", err: bool = False) -> None:
    """Print lines on stdout or stderr; names in them cannot control the terminal."""
    import typer

    if is_first_process():
        typer.echo("\n".join(map(printable, str(text).split("\n"))), err=err)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Print rows under bold heads: the first column and those in `left` left-aligned.

    Where the table is wider than the console the heads take two lines. Where that is not enough,
    the columns in `drop` are left out, in that order, and a last line names them.
    """
    from rich.cells import cell_len

    out = console()
    rows = [list(map(printable, row)) for row in rows]
    cells = zip(*rows, strict=True) if rows else [()] * len(heads)
    columns = list(zip(heads, cells, strict=True))
    droppable = [head for head in drop if head in heads]
    can_wrap = any(" " in head for head in heads)
    attempts = [(False, 0), *((can_wrap, count) for count in range(len(droppable) + 1))]
    for in_two_lines, count in attempts:
        kept = [column for column in columns if column[0] not in droppable[:count]]
        lines = _layout(kept, {heads[0], *left}, in_two_lines)
        if cell_len(lines[0]) <= out.width:
            break
    for number, line in enumerate(lines):
        is_head = number < len(lines) - len(rows)
        out.print(line.rstrip(), style="bold" if is_head else None, soft_wrap=True)
    if count:
        names = ", ".join(droppable[:count])
        out.print(f"left out in {out.width} columns: {names} (--json has them)", style="dim")


def _layout(
    columns: list[tuple[str, tuple[str, ...]]], left: Collection[str], in_two_lines: bool
) -> list[str]:
    """The lines of a table, the heads first, each as wide as the table.

    With `in_two_lines` the last word of each head has a line of its own.
    """
    from rich.cells import cell_len

    padded = []
    for head, column in columns:
        first, _, last = head.rpartition(" ")
        cells = (first, last, *column) if in_two_lines else (head, *column)
        width = max(map(cell_len, cells))
        spaces = [" " * (width - cell_len(cell)) for cell in cells]
        sides = zip(cells, spaces, strict=True) if head in left else zip(spaces, cells, strict=True)
        padded.append([start + end for start, end in sides])
    return [(" " * GAP).join(row) for row in zip(*padded, strict=True)]


def check_picture(option: str, path: Path | None) -> None:
    """UserError, before any work, for a file whose suffix is not that of a picture."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path}: give a file that ends in {', '.join(PICTURES)}")


def save_picture(drawing: Figure, path: Path) -> None:
    """Write a matplotlib figure, and the folder for it."""
    from leanres.io import write_bytes

    content = io.BytesIO()
    drawing.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def write_json(out: Path | None, report: dict[str, Any]) -> None:
    """Write the report, after it was printed: a file that cannot be written then loses nothing."""
    if out is not None:
        from leanres.io import write_bytes

        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, (json.dumps(report, indent=1) + "\n").encode())
