"""Images without labels, as `predict` takes them: image files, folders of them, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leanres.data.batch_files import Batch, batch_of, is_batch, open_batch
from leanres.data.greys import Greys
from leanres.data.image_files import decode_or_reason, image_paths, preprocess
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
class Pictures:
    """Pictures of Pillow's, which are in memory."""

    images: tuple[Image.Image, ...]

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self, size: int, channels: int, whites: Mapping[str, float] | None
    ) -> Iterator[list[UnlabelledImage]]:
        """As `Unlabelled.read`; IDs are positions from 0."""
        for start in range(0, len(self), CHUNK):
            yield [
                UnlabelledImage(
                    str(i),
                    Path(getattr(image, "filename", "") or str(i)),
                    preprocess(image, size, channels, whites)[0].transpose(1, 2, 0),
                )
                for i, image in enumerate(self.images[start : start + CHUNK], start)
            ]


@dataclass(frozen=True)
class Unlabelled:
    """Images to classify, found but not yet read. Make it with `find_unlabelled`."""

    places: tuple[Path | Batch | Pictures, ...]
    by_stem: bool = False

    def __len__(self) -> int:
        """The number of images."""
        counted = [place for place in self.places if not isinstance(place, Path)]
        return sum(map(len, counted)) + sum(1 for _ in self.files())

    def files(self) -> Iterator[Named]:
        """The image files, without what is in batches: in order, each with its ID."""
        return self._files(place for place in self.places if isinstance(place, Path))

    def read(
        self, size: int, channels: int = 3, whites: Mapping[str, float] | None = None
    ) -> Iterator[list[UnlabelledImage]]:
        """The images in order, as a network takes them (`decode_image`), some at a time."""
        for _, alike in groupby(self.places, type):
            places = list(alike)
            for place in places:
                if isinstance(place, Batch):
                    yield from self._read_batch(place, size, channels)
                elif isinstance(place, Pictures):
                    yield from place.read(size, channels, whites)
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


Images = Path | str | Image.Image | NDArray[Any] | Tensor | Iterable[Path | str | Image.Image]


def given(images: Images) -> Unlabelled:
    """Images as Python users have them: see `Predictor.predict`. UserError for anything else."""
    if isinstance(images, np.ndarray | Tensor):
        return Unlabelled((batch_of(images),))
    one = isinstance(images, Path | str | Image.Image) or not isinstance(images, Iterable)
    listed: list[Any] = [images] if one else list(images)  # type: ignore[arg-type]
    pictures = tuple(image for image in listed if isinstance(image, Image.Image))
    if pictures and len(pictures) == len(listed):
        return Unlabelled((Pictures(pictures),))
    if not all(isinstance(image, Path | str) for image in listed):
        came = ", ".join(dict.fromkeys(type(image).__name__ for image in listed))
        raise UserError(
            f"images of type {came}: give only paths, only pictures of Pillow's, or one array"
        )
    return find_unlabelled(listed)


def find_unlabelled(
    paths: Iterable[Path | str], ids: Literal["path", "stem"] = "path"
) -> Unlabelled:
    """Image files, folders of them (subfolders too), and batches (.npy, .npz, a pickled dict).

    An image's ID is its path relative to the folder; where several places are given, the path as
    given. With `ids` "stem" it is the file's name without its suffix. A batch's are its own, else
    positions from 0. UserError for a path that does not exist, a batch that cannot be read, and two
    files of one stem.
    """
    given = list(paths)
    if "" in given:  # pathlib takes it for this folder
        raise UserError("an empty path: give image files, folders (a dot: this one), or a batch")
    places = [Path(path) for path in given]
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
