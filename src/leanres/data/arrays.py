"""Arrays from numpy or PyTorch as images and labels, checked and converted."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leanres.data.image_files import natural_key, square
from leanres.errors import UserError, first_line, printable
from leanres.io import MIB, cache_folder, locked

CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}  # of images
MAX_CLASSES = 1000
IN_MEMORY = 64 * MIB  # most bytes of an array that `room_for` has in memory
KEPT, SUFFIXES = 4, (".images", ".partial")  # files of `shared_room`
Check = Callable[[NDArray[np.uint8]], bool]  # whether this is the array's content


def room_for(shape: Sequence[int]) -> NDArray[np.uint8]:
    """An array for images, its content undefined. A large one lies in a file without a name.

    The file is in the cache folder, and gone with the array: the system may write its pages out,
    so a data set that is decoded, or of which images are held out, needs no memory of its size.
    """
    size = math.prod(shape)
    if size > IN_MEMORY and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError):  # as where the disk is full
            cache_folder().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_folder()) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a hole could not be filled later
                return np.memmap(file, np.uint8, "r+", shape=tuple(shape))
    return np.empty(shape, np.uint8)


def shared_room(
    name: str, shape: Sequence[int], fill: Callable[[NDArray[np.uint8]], object], check: Check
) -> NDArray[np.uint8]:
    """An array for images that all processes of this machine map, if it is a large one.

    The first process that wants the file `name` of the cache folder fills it; whoever finds it
    checks its content. The files that were used last, KEPT of them, stay.
    """
    file = cache_folder() / "shared" / name
    if math.prod(shape) > IN_MEMORY and hasattr(os, "posix_fallocate"):
        with (
            contextlib.suppress(OSError, UserError),
            locked(file.parent / "all"),
        ):  # as where the disk is full
            if not _is_right(file, shape, check):
                _fill_file(file, shape, fill)
            file.touch()
            used = [other for other in file.parent.iterdir() if other.suffix in SUFFIXES]
            for other in sorted(used, key=_age)[KEPT:]:
                other.unlink()
            return np.memmap(file, np.uint8, "c", shape=tuple(shape))  # private where written to
    room = room_for(shape)
    fill(room)
    return room


def _is_right(file: Path, shape: Sequence[int], check: Check) -> bool:
    if not file.exists() or file.stat().st_size != math.prod(shape):
        return False
    return check(np.memmap(file, np.uint8, "r", shape=tuple(shape)))


def _fill_file(
    file: Path, shape: Sequence[int], fill: Callable[[NDArray[np.uint8]], object]
) -> None:
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb+") as opened:
            os.posix_fallocate(opened.fileno(), 0, math.prod(shape))
            fill(np.memmap(opened, np.uint8, "r+", shape=tuple(shape)))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _age(file: Path) -> float:
    return -file.stat().st_mtime


def images_of(x: Any, what: str = "images", size: int | None = None) -> Tensor:
    """Images as uint8 (N, C, H, W), whole squares.

    x: uint8, whole numbers from 0 to 255, or floats (in [0, 1], or in [0, 255] if any is above 1)
    of shape (N, H, W, C), (N, C, H, W) or (N, H, W), C one of 1, 3, 4. With `size` they are
    cropped to their centre square and resized; without it they have to be square. UserError
    starting with `what`.
    """
    pixels = as_array(x)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or 0 in pixels.shape:
        fits = "(N, H, W, C), (N, C, H, W) or (N, H, W), C 1, 3 or 4"
        raise UserError(f"{what} of shape {pixels.shape}: give {fits}")
    channels_last = _bytes(_channels_last(pixels, what), what)
    height, width = channels_last.shape[1:3]
    if size is not None and (height, width) != (size, size):
        channels_last = np.stack([_resized(image, size) for image in channels_last])
    elif height != width:
        raise UserError(f"{what} of {height}x{width} pixels: give square ones, or a size")
    return torch.from_numpy(np.array(channels_last.transpose(0, 3, 1, 2), order="C"))


def as_rgb(images: Tensor) -> Tensor:
    """Images of 3 channels: grey repeated, RGBA over white. uint8 (N, C, H, W) -> (N, 3, H, W)."""
    if images.shape[1] == 4:
        alpha = images[:, 3:].float() / 255
        return (alpha * images[:, :3] + 255 * (1 - alpha)).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1).contiguous()


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Images as grey (Pillow's "L"), RGB or RGBA. uint8 (N, C, H, W) -> (N, channels, H, W)."""
    if images.shape[1] == channels:
        return images
    rgb = as_rgb(images)
    if channels == 1:
        luma = (rgb.int() * torch.tensor([19595, 38470, 7471]).view(3, 1, 1)).sum(1, keepdim=True)
        return ((luma + 0x8000) >> 16).to(torch.uint8)
    return rgb if channels == 3 else torch.cat((rgb, torch.full_like(rgb[:, :1], 255)), 1)


def _channels_last(pixels: NDArray[Any], what: str) -> NDArray[Any]:
    """(N, H, W, C) of either layout; where both fit, the one whose images are square."""
    layouts = [pixels, pixels.transpose(0, 2, 3, 1)]
    fitting = [images for images in layouts if images.shape[3] in CHANNELS]
    if len(fitting) == 2:
        fitting = [images for images in fitting if images.shape[1] == images.shape[2]] or fitting
    if len(fitting) != 1:
        problem = "either axis may be the channels" if fitting else "no axis has 1, 3 or 4 channels"
        raise UserError(f"{what} of shape {pixels.shape}: {problem}; give (N, H, W, C)")
    return fitting[0]


def as_array(x: Any) -> NDArray[Any]:
    """As numpy; of a tensor, floats of 8 and 16 bits as float32. UserError for what is no array."""
    try:
        if not isinstance(x, Tensor):
            return np.asarray(x)
        own = x.detach().cpu()
        if own.is_floating_point() and own.dtype != torch.float64:
            own = own.float()
        return own.numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors
        kind = f"a tensor of {x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{kind} is no array ({first_line(error)}): give one of numbers") from None


def _bytes(pixels: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """The same values as uint8. UserError for another type, and for values out of range."""
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels * scale_of(pixels, what)).round().astype(np.uint8)


def scale_of(pixels: NDArray[Any], what: str) -> int:
    """What makes bytes of (N, ...) values: 255 for floats of which none is above 1, else 1.

    They are looked at in parts, as a file may be larger than memory. UserError as `_bytes`.
    """
    if not (np.issubdtype(pixels.dtype, np.floating) or np.issubdtype(pixels.dtype, np.integer)):
        raise UserError(f"{what} of type {pixels.dtype}: give uint8, or floats from 0 to 1")
    parts = [pixels[start : start + 1000] for start in range(0, len(pixels), 1000)]
    low, high = min(float(p.min()) for p in parts), max(float(p.max()) for p in parts)
    if not 0 <= low <= high <= 255:  # NaN never is
        raise UserError(
            f"{what}: values from {low:g} to {high:g}; give 0 to 255, or floats from 0 to 1"
        )
    return 255 if np.issubdtype(pixels.dtype, np.floating) and high <= 1 else 1


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, C) -> (size, size, C)."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(square(picture, size)).reshape(size, size, -1)


def labels_of(
    parts: Sequence[Any], classes: Sequence[str] | None = None
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels of several splits as int64 (N,) each, and the class names.

    parts: whole numbers or strings, (N,) or (N, 1). Without `classes`, the classes are the values
    that occur, in natural order (class2 before class10). With them, numbers are positions in
    `classes`, and strings one of them. UserError for labels of another type, or for none of them.
    """
    arrays = [_label_array(part) for part in parts]
    is_text = [array.dtype.kind in "US" for array in arrays]
    if any(is_text) != all(is_text):
        raise UserError("labels are text in one split and numbers in another: give one kind")
    if classes is not None and not all(is_text):
        return [torch.from_numpy(array.astype(np.int64)) for array in arrays], tuple(classes)
    values: list[Any] = sorted({v for array in arrays for v in np.unique(array).tolist()})
    if all(is_text):
        values = sorted(values, key=natural_key)
    known = list(classes) if classes is not None else values
    if len(known) > MAX_CLASSES:
        raise UserError(f"{len(known):,} classes: give at most {MAX_CLASSES:,}")
    if foreign := [value for value in values if value not in known]:
        raise UserError(f"label {foreign[0]!r} is no class: give one of {', '.join(known)}")
    number = {value: i for i, value in enumerate(known)}
    indices = [torch.tensor([number[v] for v in array.tolist()]) for array in arrays]
    return indices, tuple(printable(name) for name in known)


def _label_array(labels: Any) -> NDArray[Any]:
    """(N,) of whole numbers or text."""
    array = as_array(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.ravel()):
        array = array.astype(str)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == array.round()).all():
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        came = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"labels are {came}: give whole numbers or names, one per image")
    return array.astype(str) if array.dtype.kind == "S" else array
