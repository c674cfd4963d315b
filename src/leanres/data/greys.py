"""Grey values of more than 8 bits: their range, which of them is shown white, and notes on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_WHITES = (255.0, 4095.0, 65535.0)  # of 8, 12 and 16 bits


@dataclass(frozen=True)
class Greys:
    """The grey values of an image, or of several, that have more than 8 bits."""

    kind: str  # integer, float
    low: float
    high: float

    @property
    def white(self) -> float:
        """The value that is shown white: the largest of the fewest bits that hold them all.

        Floats up to 1 run from 0 to 1. Above 65,535 everything is white.
        """
        whites = (1.0, *_WHITES) if self.kind == "float" else _WHITES
        return next((white for white in whites if self.high <= white), _WHITES[-1])

    def joined(self, other: Greys) -> Greys:
        """The range of both."""
        return Greys(self.kind, min(self.low, other.low), max(self.high, other.high))


class GreyCounts:
    """Counts images with grey values of more than 8 bits, and says how those were read.

    whites: by kind, what was shown white; without one, each image's own `Greys.white`.
    """

    def __init__(self, whites: Mapping[str, float]) -> None:
        self.whites = whites
        self._ranges: dict[tuple[str, float], Greys] = {}
        self._counts: dict[tuple[str, float], tuple[int, int]] = {}  # images, those clipped

    def add(self, greys: Greys) -> None:
        """Count one image."""
        key = greys.kind, self.whites.get(greys.kind, greys.white)
        self._ranges[key] = greys.joined(self._ranges.get(key, greys))
        count, clipped = self._counts.get(key, (0, 0))
        self._counts[key] = count + 1, clipped + (greys.low < 0 or greys.high > key[1])

    def notes(self) -> Iterator[str]:
        """A line per kind and white; nothing where values are as usual for their type."""
        for (kind, white), greys in self._ranges.items():
            count, clipped = self._counts[kind, white]
            is_float = kind == "float"
            if not clipped and white in ((1.0, 255.0) if is_float else (65535.0,)):
                continue
            bits = "float" if is_float else "16-bit" if greys.high <= 65535 else "32-bit"
            have = "has" if count == 1 else "s have"
            yield (
                f"{count:,} {bits} grey image{' ' * (count == 1)}{have} values from {greys.low:g}"
                f" to {greys.high:g}: 0 is read as black, {white:g} as white"
            ) + f", and what is outside is clipped, in {clipped:,} of them" * bool(clipped)
