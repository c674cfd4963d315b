"""Table: a dict whose missing key names the nearest ones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

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


def check_settings(kind: str, step: tuple[str, Mapping[str, Any]], table: Table[Any]) -> None:
    """Refuse settings that the entry named by `step` does not take, or of the wrong type.

    The entry is a function; its settings are its parameters with a default.
    """
    name, settings = step
    function = table[name]
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty]
    hints = get_type_hints(function)
    for key, value in settings.items():
        if key not in known:
            raise UserError(unknown(f"{name} setting", key, known) if known else _none(kind, name))
        if not _fits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", str(hints[key]))
            raise UserError(
                f"{kind} {name}: {key} = {value!r}: give {_ARTICLES.get(wanted, wanted)}"
            )


_ARTICLES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a name"}


def _none(kind: str, name: str) -> str:
    return f"{kind} {name} takes no settings"


def _fits(value: Any, hint: Any) -> bool:
    kinds = set(get_args(hint)) or {hint}
    return type(value) in kinds or (type(value) is int and float in kinds)
