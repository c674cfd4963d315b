"""Settings of named functions (augmentations, schedules): names, types, ranges, checked early."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from leanres.errors import UserError
from leanres.registry import unknown

_LEADING = ("images", "targets", "draw", "at")  # what the caller gives, not the user
_RANGES: dict[str, tuple[float, float]] = {  # a setting means the same wherever it occurs
    "p": (0, 1),
    "padding": (0, 1024),
    "size": (0, 4096),
    "holes": (1, 64),
    "fill": (0, 255),
    "value": (0, 255),
    "scale": (0, 1),
    "ratio": (0.01, 100),
    "degrees": (0, 360),
    "distortion": (0, 1),
    "brightness": (0, 10),
    "contrast": (0, 10),
    "saturation": (0, 10),
    "hue": (0, 0.5),
    "num_ops": (1, 14),
    "magnitude": (0, 30),
    "alpha": (0.01, 100),
    "beta": (0.01, 100),
    "every_epochs": (1, 100_000),
    "gamma": (1e-6, 1),
    "peak_epoch": (0, 100_000),
    "lr_min": (1e-12, 1e3),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("constant", "reflect"),
    "interpolation": ("bilinear", "nearest"),
    "value": ("random",),
    "shape": ("linear", "cosine"),
}


def check_settings(function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
    """Refuse what `function`, known as `name`, does not take. -> UserError, one line.

    Names are those of its parameters, types theirs; a whole number is a number, a list a pair.
    """
    known = [key for key in inspect.signature(function).parameters if key not in _LEADING]
    hints = get_type_hints(function)
    for key, value in settings.items():
        if not known:
            raise UserError(f"{name} has no settings, but {key!r} came; leave it out")
        if key not in known:
            raise UserError(unknown(f"setting of {name}", key, known))
        if not _fits(key, value, hints[key]):
            raise UserError(f"{name}: {key} = {value!r}; give {_wanted(key, hints[key])}")


def _fits(key: str, value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(key, value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2
        return is_pair and all(_fits(key, one, float) for one in value) and value[0] <= value[1]
    if kind is str:
        return isinstance(value, str) and value in _CHOICES[key]
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    is_number = isinstance(value, (int, float) if kind is float else int)
    low, high = _RANGES[key]
    return is_number and not isinstance(value, bool) and low <= value <= high


def _wanted(key: str, kind: Any) -> str:
    if isinstance(kind, UnionType):
        return ", or ".join(_wanted(key, one) for one in get_args(kind))
    if kind in (bool, NoneType):
        return "true or false" if kind is bool else "nothing"
    if kind is str:
        return " or ".join(repr(choice) for choice in _CHOICES[key])
    noun = "a whole number" if kind is int else "a number"
    if get_origin(kind) is tuple:
        noun = "two numbers, the lower first, each"
    low, high = _RANGES[key]
    return f"{noun} from {low:g} to {high:g}"
