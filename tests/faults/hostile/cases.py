"""What an input is, and how hostile ones are made and read."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutations import mutate

from leanres.cli import main as command_line
from leanres.errors import UserError

MARK = "executed"  # the folder that code of an input would make
NAN, INF = float("nan"), float("inf")
ODD: tuple[Any, ...] = (
    *(None, True, "", "a", "\x1b[2J", -1, 0, 3, 0.5, 2, 10**9, 10**30, 1e308, NAN, INF, -INF),
    *([], {}, [[]], [1] * 1000, [NAN] * 3, [2.0] * 3, [-0.1] * 3, ["a"] * 3, [None] * 3, [0] * 3),
    *(["a", "b\n"], ["<b>"] * 11, ["a" * 10_000], ["x", "x"], {"a": {"b": []}}, [10**30] * 3),
)


@dataclass(frozen=True)
class Case:
    """An input: `read` has to refuse it, or may read it where `refused` is false."""

    kind: str
    name: str
    read: Callable[[], Any]
    refused: bool = True


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mutated(content: bytes, rng: random.Random) -> bytes:
    """With up to sixteen changes."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        content = mutate(content or b"a", rng)
    return content


def told(read: Callable[[], Any]) -> Callable[[], Any]:
    """`read`, whose OSError and ValueError are what the command line tells as one line."""

    def run() -> Any:
        try:
            return read()
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None

    return run


def run_command(*words: str) -> None:
    """A command in this process, without output."""
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        command_line(words)
    except SystemExit as end:
        said = f"{sys.stdout.getvalue()}{sys.stderr.getvalue()}"
        code = end.code
    if not said.replace("\n", "").isprintable() or code not in (0, 2):
        raise RuntimeError(f"exit code {code}, prints {said!r}")
    if code:
        raise UserError(said)
