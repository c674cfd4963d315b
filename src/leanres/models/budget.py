"""Budget: limits of what a network may cost, as in "params=5M,macs=1.2G,memory=256K,file=2MB"."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from leanres.errors import UserError
from leanres.models.cost import BYTES, Summary
from leanres.registry import unknown

SUFFIXES = {"": 0, "k": 1, "m": 2, "g": 3}


class Term(NamedTuple):
    """What a limit is for: the network's own value, None if it is unknown, and its unit."""

    value: Callable[[Summary], int | None]
    unit: str = ""
    at_least: bool = False


TERMS = {
    "params": Term(lambda costs: costs.params),
    "macs": Term(lambda costs: costs.macs),
    "memory": Term(lambda costs: costs.memory["float32"], "B"),
    "memory-int8": Term(lambda costs: costs.memory["int8"], "B"),
    "file": Term(lambda costs: costs.params * BYTES["float16"], "B"),
    "file-int8": Term(lambda costs: costs.params * BYTES["int8"], "B"),
    "receptive-field": Term(lambda costs: costs.receptive_field, "px"),
    "min-receptive-field": Term(lambda costs: costs.receptive_field, "px", at_least=True),
}


class Verdict(NamedTuple):
    """A limit, what the network has, and whether that is within."""

    term: str
    value: int | None
    limit: int
    fits: bool

    def __str__(self) -> str:
        unit = f" {TERMS[self.term].unit}".rstrip()
        value = "unknown" if self.value is None else f"{self.value:,}{unit}"
        signs = ("<", ">=") if TERMS[self.term].at_least else (">", "<=")
        return f"{self.term} {value} {signs[self.fits]} {self.limit:,}{unit}"


@dataclass(frozen=True)
class Budget:
    """Limits by the name of their term; made by `parse_budget`."""

    limits: tuple[tuple[str, int], ...]

    def __getitem__(self, term: str) -> int | None:
        return dict(self.limits).get(term)

    def verdicts(self, costs: Summary) -> list[Verdict]:
        """Each limit with the network's value; an unknown value fits no limit."""
        found = []
        for name, limit in self.limits:
            term = TERMS[name]
            value = term.value(costs)
            fits = value is not None and (value >= limit if term.at_least else value <= limit)
            found.append(Verdict(name, value, limit, fits))
        return found

    def admits(self, costs: Summary) -> bool:
        """Whether a network is within all limits."""
        return all(verdict.fits for verdict in self.verdicts(costs))


def parse_budget(text: str) -> Budget:
    """ "5M" (parameters), or "params=5M,macs=1.2G,memory=256K,file=2MB" with the names of TERMS.

    memory is that of one image's activations in float32, file that of the weights in float16.
    UserError for another name or amount.
    """
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, equals, amount = part.rpartition("=")
        name = name.strip() if equals else "params"
        if name not in TERMS:
            raise UserError(f"budget {text!r}: {unknown('term', name, [*TERMS])}")
        limit = parse_count(amount, in_bytes=TERMS[name].unit == "B")
        if name in limits:
            raise UserError(f"budget {text!r}: {name} is given twice: give it once")
        limits[name] = limit
    return Budget(tuple(limits.items()))


def parse_count(text: str, in_bytes: bool = False) -> int:
    """ "5M", "2.5m", "300k" or "4_970_000" as a whole number above 0, else `UserError`.

    `in_bytes` also takes 2MB (10^6 bytes each) and 256KiB (2^10).
    """
    pattern = r"(\d+(?:_\d+)*(?:\.\d+)?)([kmg]?)" + ("(i?b?)" if in_bytes else "()")
    match = re.fullmatch(pattern, text.strip().lower(), re.ASCII)
    if match and not (match[3].startswith("i") and not match[2]):
        base = 1024 if match[3].startswith("i") else 1000
        count = Decimal(match[1].replace("_", "")) * base ** SUFFIXES[match[2]]
        if count > 0 and count == int(count):
            return int(count)
    fits = "256K, 2MB or 96KiB" if in_bytes else "300k or 2.5M"
    raise UserError(f"{text!r} is not a count: give a whole number above 0, such as {fits}")
