"""ModelConfig, the interface of every network's config; checks of a config's fields."""

from __future__ import annotations

from dataclasses import Field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from leanres.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class ModelConfig(Protocol):
    """A frozen dataclass whose `build()` makes a network: (N, 3, H, W) -> logits (N, K).

    A network with a method `init_from_data_(images)` is initialised with a sample of the normalised
    training images (N, 3, H, W) before its training.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # makes `replace` and `fields` accept it

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each stage, in order."""

    @property
    def num_classes(self) -> int:
        """K, the number of logits per image."""

    def build(self) -> nn.Module:
        """A new network on the default device, initialised with torch's global generator."""


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise `UserError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r}: give a whole number of at least {least}")


def check_fraction(name: str, value: object) -> None:
    """Raise `UserError` unless `value` is a number in [0, 1)."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(f"{name} is {value!r}: give a number of at least 0 and below 1")


def whole_tuple(name: str, values: object) -> tuple[int, ...]:
    """`values` (a tuple or list of whole numbers of at least 1) as a tuple, else `UserError`."""
    if not isinstance(values, tuple | list) or not values:
        raise UserError(f"{name} is {values!r}: give one whole number per stage, such as (16, 32)")
    for value in values:
        check_whole(f"one of {name}", value)
    return tuple(values)
