"""Progress of the long forms: a line on stderr now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
EVERY_S = 60.0


def shown(items: Sequence[T], name: str) -> Iterator[T]:
    """The items; every minute a line says how many are done."""
    told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told > EVERY_S:
            told = time.monotonic()
            print(f"{name}: {done:,} of {len(items):,}", file=sys.stderr, flush=True)
        yield item
