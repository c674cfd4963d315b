"""Tables of named entries, and the check of a setting against the range beside its type."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as _hints

from leanres.errors import UserError

V = TypeVar("V")
Spec = tuple[str, dict[str, Any]]  # an entry of a table by name, and its settings


class Table(dict[str, V]):
    """A registry: name -> entry, read and extended like any dict.

    `kind` names what the table holds in the error for an unknown name, which names the nearest.
    """

    def __init__(self, kind: str, entries: dict[str, V]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> V:
        raise UserError(unknown(self.kind, name, list(self)))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a name that is not among `known`: the nearest one, then all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"no {kind} {name!r}{hint} there are: {', '.join(sorted(known))}"


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included: `p: Annotated[float, Range(0, 1)] = 0.5`.

    On a tuple of numbers the bounds hold for each; `ordered` also asks that they never fall.
    """

    low: float
    high: float
    ordered: bool = False

    def admits(self, value: Any) -> bool:
        """Whether a number, or each number of a tuple, is within the bounds."""
        numbers = value if isinstance(value, tuple) else (value,)
        within = all(self.low <= number <= self.high for number in numbers)
        return within and not (self.ordered and list(numbers) != sorted(numbers))


class Convert(NamedTuple):
    """Reads a setting by a function of its own: (label, value) -> value, or a UserError."""

    read: Callable[[str, Any], Any]


def check_settings(
    function: Callable[..., Any], name: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings as `function`, registered as `name`, takes them. UserError for a wrong one.

    The settings of a function are its parameters with a default; their types may carry a `Range`.
    """
    parameters = inspect.signature(function).parameters
    known = [key for key, p in parameters.items() if p.default is not p.empty]
    for key in settings:
        if not known:
            raise UserError(f"{name} has no settings, but {key!r} came: leave it out")
        if key not in known:
            raise UserError(unknown(f"setting of {name}", key, known))
    hints = setting_types(function)
    return {key: checked(f"{name}: {key}", value, hints[key]) for key, value in settings.items()}


def setting_types(owner: Any) -> dict[str, Any]:
    """Type of each parameter of a function, or field of a class, with its annotations."""
    return _hints(owner, include_extras=True)


def checked(label: str, value: Any, hint: Any) -> Any:
    """`value` as the type says: lists become tuples, whole numbers floats. Else UserError."""
    for note in notes_of(hint):
        if isinstance(note, Convert):
            return note.read(label, value)
    try:
        return _fit(value, hint)
    except ValueError:
        raise UserError(f"{label} = {value!r}: give {wanted(hint)}") from None


def notes_of(hint: Any) -> tuple[Any, ...]:
    """What stands beside the type in `Annotated[...]`; nothing for a plain type."""
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _fit(value: Any, hint: Any) -> Any:
    """The value as `hint` has it; ValueError where it is none."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fitted = _fit(value, options[0])
        if all(note.admits(fitted) for note in options[1:] if isinstance(note, Range)):
            return fitted
    elif origin in (Union, UnionType):
        for option in options:
            with contextlib.suppress(ValueError):
                return _fit(value, option)
    elif origin is Literal:
        if isinstance(value, str) and value in options:
            return value
    elif origin is tuple:
        return _fit_tuple(value, options)
    elif hint in (int, float):
        return _fit_number(value, hint)
    elif type(value) is hint:
        return value
    raise ValueError


def _fit_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(each) == len(value):
            return tuple(_fit(one, kind) for one, kind in zip(value, each, strict=True))
    raise ValueError


def _fit_number(value: Any, kind: type) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and value != value // 1):
        raise ValueError
    return kind(value)


def wanted(hint: Any) -> str:
    """What a setting of this type takes, in words: "a whole number from 1 to 64"."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [note for note in options[1:] if isinstance(note, Range)]
        each = ", the lower first, each" if bounds and bounds[0].ordered else ""
        within = "".join(f" from {b.low:g} to {b.high:g}" for b in bounds)
        return f"{wanted(options[0])}{each}{within}"
    if origin in (Union, UnionType):
        return ", or ".join(map(wanted, options))
    if origin is Literal:
        return " or ".join(map(repr, options))
    if origin is tuple:
        if options[-1] is Ellipsis:
            return "a list"
        return "two numbers" if len(options) == 2 else f"{len(options)} values"
    names = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}
    return names.get(hint, "a name")
