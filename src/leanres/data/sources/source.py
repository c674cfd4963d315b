"""Source: an entry of SOURCES; LoadOptions: the options it is loaded with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leanres.data.split import Dataset

Progress = Callable[[str, int, int], None] | None  # called with (what, done, total)
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DEFAULT_PX = 32


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set: their format, the folder, and the ones to read."""

    kind: str
    root: Path
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of `load_data` as a source receives them."""

    path: Path | None
    cache: Path
    own_size: int | None = None  # side in pixels that was asked for
    own_channels: int | None = None  # that were asked for
    strict: bool = False
    download: bool = True
    progress: Progress = None
    settings: Mapping[str, str] = field(default_factory=dict)  # as in "parquet,label=breed:PATH"
    whites: Mapping[str, float] = field(default_factory=dict)  # of grey values, as a network has

    @property
    def size(self) -> int:
        """Side in pixels of images that have no common size of their own."""
        return self.own_size or DEFAULT_PX

    @property
    def channels(self) -> int:
        """Channels that image files are decoded to."""
        return self.own_channels or 3


@dataclass(frozen=True)
class Source:
    """How to load one layout of images, and how to recognise it on disk.

    `recognises` returns something true for a path that it can load; `layout` describes in words
    what lies there. A source without files has neither. `settings` are those that may stand behind
    its name, as in "parquet,label=breed:PATH".
    """

    load: Callable[[LoadOptions], Dataset]
    recognises: Callable[[Path], object] = lambda _: False
    layout: str = ""
    settings: tuple[str, ...] = ()
