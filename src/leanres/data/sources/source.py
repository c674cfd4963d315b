"""Source: an entry of SOURCES; LoadOptions: the options it is loaded with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leanres.data.split import Dataset

Progress = Callable[[str, int, int], None] | None  # called with (what, done, total)


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of `load_data` as a source receives them."""

    path: Path | None
    cache: Path
    size: int = 32  # side of the images in pixels
    strict: bool = False
    download: bool = True
    progress: Progress = None


@dataclass(frozen=True)
class Source:
    """How to load one layout of images, and how to recognise it on disk.

    `recognises` returns something true for a path that it can load; `layout` describes in words
    what lies there. A source without files has neither.
    """

    load: Callable[[LoadOptions], Dataset]
    recognises: Callable[[Path], object] = lambda _: False
    layout: str = ""
