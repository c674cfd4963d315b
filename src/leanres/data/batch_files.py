"""Batch files: images without labels as one array, in a .npy, a .npz or a pickled dict."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanres.data.arrays import as_array, images_of, in_channels, scale_of
from leanres.data.sources.batch_pickle import PickledArray, as_text, unpickle_dict
from leanres.data.sources.numpy_files import map_npy, npz_shapes, read_npz
from leanres.errors import UserError, named, printable, undamaged
from leanres.io import MIB, open_file, read_file

MAX_BYTES = 4096 * MIB  # of a pickle, a .npz and each of its arrays; a .npy is mapped
MIN_SIDE = 4  # pixels of an image that is a row of numbers: labels are rows too
IMAGE_KEYS = ("test_images", "x_test", "images", "data", "x")  # where there are several arrays
ID_KEYS = ("ids", "id")
NUMBERS = re.compile(r"[iuf][1248]|[US]\d{1,4}")  # dtypes that a pickle may name


@dataclass(frozen=True)
class Batch:
    """Images of a batch file: (N, ...) of any layout that `images_of` takes, perhaps with IDs."""

    path: Path
    images: NDArray[Any]
    scale: int = 1  # makes bytes of the values
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def ids_from(self, start: int, count: int) -> list[str]:
        """The IDs of `count` images: the batch's own, or positions from 0."""
        places = range(start, start + count)
        return [self.ids[i] for i in places] if self.ids else list(map(str, places))

    def read(self, part: slice, size: int, channels: int = 3) -> NDArray[np.uint8]:
        """A part of the images, as files are read. (n, size, size, channels)."""
        pixels = np.array(self.images[part])  # a copy: PyTorch wants to write
        if pixels.dtype != np.uint8:
            pixels = (pixels * self.scale).round().astype(np.uint8)
        images = images_of(pixels, printable(self.path), size)
        return in_channels(images, channels).permute(0, 2, 3, 1).numpy()


def is_batch(path: Path) -> bool:
    """Whether a file is a .npy, a .npz or a pickle, by its first bytes or its name."""
    return _opener(path) is not None


def open_batch(path: Path) -> Batch:
    """The images of a batch file, in memory or mapped. UserError, naming the file, for others."""
    opener = _opener(path)
    assert opener is not None
    # what damaged bytes raise in numpy's readers and in the restricted one may be anything
    with undamaged(path, (Exception,)), named(path):
        images, ids = opener(path)
        if images.ndim not in (3, 4) or 0 in images.shape:
            fits = "(N, H, W, C), (N, C, H, W), (N, H, W) or rows of pixels"
            raise UserError(f"its array has shape {images.shape}: give {fits}")
        if images.ndim == 3 and images.shape[2] in (3, 4):
            images = images[None]  # a single image
        batch = Batch(path, images, 1, tuple(map(str, ids.tolist())))
        if ids.size and ids.shape != images.shape[:1]:
            raise UserError(f"{len(images):,} images, but ids of shape {ids.shape}")
        return _checked(batch)


def _checked(batch: Batch) -> Batch:
    """The batch with its scale. UserError for values out of range, and for another shape."""
    images = batch.images
    if images.dtype != np.uint8:
        batch = replace(batch, scale=scale_of(images, printable(batch.path)))
    batch.read(slice(0, 1), MIN_SIDE)  # refuses another shape
    return batch


def batch_of(x: Any) -> Batch:
    """An array in memory as a batch: (N, ...) as `images_of` takes it, or a single image.

    UserError for one that holds no images.
    """
    array = as_array(x)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        array = array[None]
    if array.ndim in (3, 4) and array.size:
        return _checked(Batch(Path("array"), array))
    fits = "(N, H, W, C), (N, C, H, W), (N, H, W), or one image"
    raise UserError(f"an array of shape {array.shape}: give {fits}")


def _opener(path: Path) -> Any:
    """The function that reads this kind of batch; None for another file, or a folder."""
    if not path.is_file():
        return None
    with open_file(path, sys.maxsize) as file:
        magic = file.read(6)
    for opener, begin, suffixes in _OPENERS:
        if magic.startswith(begin) or path.suffix.lower() in suffixes:
            return opener
    return None


def _npy(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    return _in_rows(map_npy(path)), np.array([])


def _npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    chosen, ids = _choose(npz_shapes(path, MAX_BYTES))
    arrays = read_npz(path, (chosen, *ids), MAX_BYTES)
    return _in_rows(arrays[chosen]), next((arrays[name] for name in ids), np.array([]))


def _pickled(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    found = unpickle_dict(read_file(path, MAX_BYTES), printable(path))
    arrays = {k: _array_of(v) for k, v in found.items() if isinstance(v, PickledArray)}
    arrays |= {k: np.array(v) for k, v in found.items() if isinstance(v, list) and k in ID_KEYS}
    chosen, ids = _choose({name: array.shape for name, array in arrays.items()})
    return _in_rows(arrays[chosen]), next((arrays[name] for name in ids), np.array([]))


def _array_of(found: PickledArray) -> NDArray[Any]:
    """The array that stands in a pickle, of numbers or text."""
    _, shape, dtype, is_fortran, content = found.state
    code = as_text(dtype.arguments[0])
    if not NUMBERS.fullmatch(code):
        raise UserError(f"it has an array of type {printable(code)[:20]}: give one of numbers")
    flat = np.frombuffer(content, np.dtype(as_text(dtype.state[1]) + code))
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _choose(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, list[str]]:
    """The array that holds the images, and those that hold IDs, by shape and then by name."""
    images = [name for name, shape in shapes.items() if len(shape) > 2 or _side(shape)]
    if len(images) > 1:
        images = [key for key in IMAGE_KEYS if key in images][:1] or images
    if len(images) != 1:
        names = ", ".join(map(printable, images or shapes))[:200]
        problem = "several arrays of images" if images else "no array of images"
        raise UserError(f"it has {problem} ({names}): give one, as {IMAGE_KEYS[2]!r}")
    return images[0], [key for key in ID_KEYS if key in shapes]


def _side(shape: tuple[int, ...]) -> int:
    """Pixels a side of images that are rows of numbers, RGB by planes or grey; else 0."""
    if len(shape) != 2:
        return 0
    sides = (math.isqrt(max(shape[1], 0) // planes) for planes in (3, 1))
    fits = zip(sides, (3, 1), strict=True)
    return next((s for s, planes in fits if s >= MIN_SIDE and planes * s * s == shape[1]), 0)


def _in_rows(images: NDArray[Any]) -> NDArray[Any]:
    """(N, 3 S S) as (N, 3, S, S), as CIFAR-10 stores it, (N, S S) as (N, S, S); others as given."""
    side = _side(images.shape)
    if not side:
        return images
    planes = images.shape[1] // side**2
    return images.reshape((len(images), planes, side, side))


_OPENERS = (
    (_npy, b"\x93NUMPY", (".npy",)),
    (_npz, b"PK\x03\x04", (".npz",)),
    (_pickled, b"\x80", (".pkl", ".pickle")),
)
