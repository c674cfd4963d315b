"""Table: a dict whose missing key names the nearest ones."""

from __future__ import annotations

import difflib
from typing import TypeVar

from leanres.errors import UserError

V = TypeVar("V")


class Table(dict[str, V]):
    """All the registry there is: name -> entry, read like any dict.

    `kind` names what the table holds in the error for an unknown name.
    """

    def __init__(self, kind: str, entries: dict[str, V]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> V:
        raise UserError(unknown(self.kind, name, list(self)))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a name that is not among `known`: nearest first, then all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"no {kind} {name!r}{hint} there are: {', '.join(sorted(known))}"
