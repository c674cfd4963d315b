"""Tables of named entries, and the validation of settings against their type and range.

A setting declares its range beside its type: `p: Annotated[float, Range(0, 1)] = 0.5`. This holds
for parameters of registered functions (`check_settings`) and for dataclass fields (`check_fields`).
A `Table` beside the type `str` admits its names.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as _type_hints

from leanres import plugins
from leanres.errors import UserError

V = TypeVar("V")
Spec = tuple[str, dict[str, Any]]  # the name of a table entry, and its settings


class Table(dict[str, V]):
    """A registry: name -> entry, read and extended like any dict.

    `kind` says in error messages what the table holds. An unknown name is a `UserError` that
    suggests the nearest one; "mine:thing" is looked up in the plugin mine, each time anew, as the
    plugin may be edited and loaded again. `entry(name, value)` makes an entry of what is put in,
    such as a plain function. A function that is put in has to take `takes` by position; parameters
    beyond them have defaults.
    """

    def __init__(
        self,
        kind: str,
        entries: dict[str, V],
        entry: Callable[[str, Any], V] | None = None,
        takes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(entries)
        self.kind, self.entry, self.takes = kind, entry, takes

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, self._made(name, value))

    def __missing__(self, name: str) -> V:
        if not plugins.is_reference(name):
            raise UserError(unknown(self.kind, name, list(self)))
        return self._made(name, plugins.find(self.kind, name))

    def _made(self, name: str, value: Any) -> V:
        if self.takes:
            _check_takes(f"{self.kind} {name}", value, self.takes)
        made: V = self.entry(name, value) if self.entry else value
        return made

    def name_of(self, thing: str | Callable[..., Any]) -> str:
        """A name as it is; of a function or class the name by which it is found."""
        return thing if isinstance(thing, str) else plugins.reference(thing)


def _check_takes(label: str, function: Any, takes: tuple[str, ...]) -> None:
    """UserError for what cannot be called with these arguments."""
    if not callable(function):
        raise UserError(f"{label} is a {type(function).__name__}: give a function")
    try:
        shape = inspect.signature(function)
    except (TypeError, ValueError):  # one of C tells no parameters
        return
    try:
        shape.bind(*takes)
    except TypeError:
        raise UserError(
            f"{label} takes {shape}: let it take ({', '.join(takes)}), and others by default"
        ) from None


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The error message for a name that is not in `known`: the nearest one, then all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"no {kind} {name!r}{hint} there are: {', '.join(sorted(known))}"


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, written beside its type in `Annotated`.

    In a tuple, every number has to be within the bounds. `ordered` also requires that the numbers
    do not decrease.
    """

    low: float
    high: float
    ordered: bool = False

    def admits(self, value: Any) -> bool:
        """Whether a number, or every number of a tuple, is within the bounds. NaN never is."""
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        within = all(self.low <= number <= self.high for number in numbers)
        return within and not (self.ordered and list(numbers) != sorted(numbers))


class Convert(NamedTuple):
    """Replaces the check by type with a function: (label, value) -> the value, or a UserError."""

    read: Callable[[str, Any], Any]


def check_settings(
    function: Callable[..., Any], name: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Validate and convert settings of `function`, which is registered as `name`.

    The settings of a function are its parameters that have a default. One without a type hint has
    the type of its default. UserError for an unknown setting or a value that does not fit.
    """
    parameters = inspect.signature(function).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    for key in settings:
        if not defaults:
            raise UserError(f"{name} has no settings, but {key!r} was given: leave it out")
        if key not in defaults:
            raise UserError(unknown(f"setting of {name}", key, list(defaults)))
    hints = {key: type(default) for key, default in defaults.items()} | setting_types(function)
    return {key: checked(f"{name}: {key}", value, hints[key]) for key, value in settings.items()}


def check_fields(settings: object) -> None:
    """Validate and convert every field of a frozen dataclass; its `__post_init__` calls this.

    UserError for a value that does not fit the type or range of its field.
    """
    types = setting_types(type(settings))  # type: ignore[arg-type]  # a class is hashable
    for name, hint in types.items():
        object.__setattr__(settings, name, checked(name, getattr(settings, name), hint))


@cache
def setting_types(owner: Any) -> dict[str, Any]:
    """Type hints of a function's parameters or a class's fields, `Annotated` included."""
    return _type_hints(owner, include_extras=True)


def checked(label: str, value: Any, hint: Any) -> Any:
    """`value` converted to the type `hint`: lists become tuples, whole numbers become floats.

    UserError, starting with `label`, for a value of another type or out of range.
    """
    for note in notes_of(hint):
        if isinstance(note, Convert):
            return note.read(label, value)
        if isinstance(note, Table) and (isinstance(value, str) or callable(value)):
            value = note.name_of(value)
            note[value]  # an unknown name raises
    try:
        return _fit(value, hint)
    except (ValueError, OverflowError):
        raise UserError(f"{label} = {value!r}: give {wanted(hint)}") from None


def check_class_names(names: Sequence[str]) -> None:
    """UserError for class names that repeat, or are longer than 255 characters or unprintable."""
    if len(set(names)) != len(names):
        raise UserError(f"class names repeat: {', '.join(names)}; give each its own")
    for name in names:
        if len(name) > 255 or not name.isprintable():
            raise UserError(f"class name {name[:40]!r}: give at most 255 printable characters")


def check_whites(label: str, value: Any) -> dict[str, float]:
    """The grey value that is shown white, by kind: "integer", "float". UserError for anything else.

    It is a positive number for either or both.
    """
    if not isinstance(value, Mapping) or not value.keys() <= {"integer", "float"}:
        raise UserError(f"{label} = {value!r}: give a number for integer, float, or both")
    number = Annotated[float, Range(1, 65535)]
    return {kind: checked(f"{label}: {kind}", white, number) for kind, white in value.items()}


def notes_of(hint: Any) -> tuple[Any, ...]:
    """The metadata of `Annotated[type, *metadata]`; empty for any other type."""
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _fit(value: Any, hint: Any) -> Any:
    """`value` converted to the type `hint`. ValueError or OverflowError if that is impossible."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fitted = _fit(value, options[0])
        if all(note.admits(fitted) for note in options[1:] if isinstance(note, Range)):
            return fitted
    elif origin in (Union, UnionType):
        for option in options:
            with contextlib.suppress(ValueError, OverflowError):
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


def _fit_tuple(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list or tuple as a tuple; `hints` are the arguments of tuple[X, Y] or tuple[X, ...]."""
    if isinstance(value, list | tuple):
        each = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
        if len(each) == len(value):
            return tuple(_fit(item, hint) for item, hint in zip(value, each, strict=True))
    raise ValueError


def _fit_number(value: Any, kind: type) -> Any:
    """An int or float as `kind`. A bool is not a number; 3.0 is a whole number, 3.5 is not."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (kind is int and value != value // 1):
        raise ValueError
    return kind(value)


def wanted(hint: Any) -> str:
    """What a setting of this type accepts, in words: "a whole number from 1 to 64"."""
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
        many = {int: "whole numbers", float: "numbers"}.get(options[0], "values")
        count = {2: "two", 4: "four"}.get(len(options), len(options))
        return f"a list of {many}" if options[-1] is Ellipsis else f"{count} {many}"
    words = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}
    return words.get(hint, "a name")
