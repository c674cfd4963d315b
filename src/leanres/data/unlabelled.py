"""Images without labels, as `predict` takes them: image files, folders of them, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leanres.data.batch_files import Batch, is_batch, open_batch
from leanres.data.greys import Greys
from leanres.data.image_files import decode_or_reason, image_paths
from leanres.errors import UserError, printable

CHUNK = 500  # images that are in memory at a time
Named = tuple[str, Path]  # an image's ID and its file


@dataclass(frozen=True)
class UnlabelledImage:
    """An image with its ID: pixels (size, size, C), or the reason why it cannot be read."""

    id: str
    path: Path  # of the image file, or of the batch
    pixels: NDArray[np.uint8] | str
    greys: Greys | None = None  # of an image file with grey values of more than 8 bits


@dataclass(frozen=True)
class Unlabelled:
    """Images to classify, found but not yet read. Make it with `find_unlabelled`."""

    places: tuple[Path | Batch, ...]
    by_stem: bool = False

    def __len__(self) -> int:
        """The number of images."""
        batches = [place for place in self.places if isinstance(place, Batch)]
        return sum(map(len, batches)) + sum(1 for _ in self.files())

    def files(self) -> Iterator[Named]:
        """The image files, without what is in batches: in order, each with its ID."""
        return self._files(place for place in self.places if isinstance(place, Path))

    def read(
        self, size: int, channels: int = 3, whites: Mapping[str, float] | None = None
    ) -> Iterator[list[UnlabelledImage]]:
        """The images in order, as a network takes them (`decode_image`), some at a time."""
        for _, alike in groupby(self.places, type):
            places = list(alike)
            for batch in (place for place in places if isinstance(place, Batch)):
                yield from self._read_batch(batch, size, channels)
            paths = (place for place in places if isinstance(place, Path))
            yield from _read_files(self._files(paths), size, channels, whites)

    def _files(self, places: Iterable[Path]) -> Iterator[Named]:
        for place in places:
            for path in image_paths(place) if place.is_dir() else (place,):
                # of one folder: relative to it; of several places, names must not collide
                own = path.relative_to(place) if path != place and len(self.places) == 1 else path
                yield own.stem if self.by_stem else own.as_posix(), path

    def _read_batch(
        self, batch: Batch, size: int, channels: int
    ) -> Iterator[list[UnlabelledImage]]:
        prefix = f"{batch.path.as_posix()}/" if len(self.places) > 1 else ""
        for start in range(0, len(batch), CHUNK):
            images = batch.read(slice(start, start + CHUNK), size, channels)
            ids = batch.ids_from(start, len(images))
            yield [
                UnlabelledImage(prefix + own, batch.path, image)
                for own, image in zip(ids, images, strict=True)
            ]


def _read_files(
    files: Iterator[Named], size: int, channels: int, whites: Mapping[str, float] | None
) -> Iterator[list[UnlabelledImage]]:
    while chunk := list(islice(files, CHUNK)):
        outcomes = decode_or_reason([path for _, path in chunk], size, channels, whites)
        yield [
            UnlabelledImage(own, path, *((out, None) if isinstance(out, str) else out))
            for (own, path), out in zip(chunk, outcomes, strict=True)
        ]


def find_unlabelled(
    paths: Iterable[Path | str], ids: Literal["path", "stem"] = "path"
) -> Unlabelled:
    """Image files, folders of them (subfolders too), and batches (.npy, .npz, a pickled dict).

    An image's ID is its path relative to the folder; where several places are given, the path as
    given. With `ids` "stem" it is the file's name without its suffix. A batch's are its own, else
    positions from 0. UserError for a path that does not exist, a batch that cannot be read, and two
    files of one stem.
    """
    places = [Path(path) for path in paths]
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist: give image files, folders, or a batch")
    found = tuple(open_batch(place) if is_batch(place) else place for place in places)
    if ids == "stem":
        _check_stems(Unlabelled(found))
    return Unlabelled(found, ids == "stem")


def _check_stems(images: Unlabelled) -> None:
    seen: dict[str, str] = {}
    for own, path in images.files():
        first = seen.setdefault(path.stem, own)
        if first != own:
            both = f"{printable(first)} and {printable(own)}"
            raise UserError(f"{both} have the same stem: leave --id stem out, IDs are paths then")
