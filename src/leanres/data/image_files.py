"""Image files: list those of a folder, read one as a square of RGB pixels."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from leanres.errors import first_line, printable
from leanres.io import MIB, open_file

MAX_PIXELS = 25_000_000  # checked in the header, before any pixel is decoded
MAX_BYTES = 256 * MIB  # 25 megapixels of 8 bytes, and room for metadata
# No others: icons hold an image of another size than their header says, EPS runs Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
# How predict makes what a network takes of an image file, for those who run an ONNX file elsewhere.
RULE = (
    "turned as its EXIF orientation says; 16-bit grey divided by 257 and rounded; transparency over"
    " white; RGB; the centre square of the shorter side, its left and top rounded down; resized to"
    " size x size by Pillow's BICUBIC, which is antialiased; uint8 (N, 3, size, size), 0 to 255."
    " Normalisation is part of the network."
)
_one_at_a_time = Lock()  # decoding an image of 25 megapixels takes some hundred MB
_SMALL = 4_000_000  # pixels of an image that is decoded beside others


@dataclass(frozen=True)
class Unreadable:
    """An image file that cannot be read, and the reason in one line."""

    path: Path
    reason: str


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that orders digits by value (class2 before class10) and ignores case.

    Two strings, as a folder may hold a million names: each number begins with its length.
    """
    return re.sub(r"0*([0-9]*)", _by_value, name.casefold()), name


def _by_value(digits: re.Match[str]) -> str:
    return f"\0{chr(len(digits[1]))}{digits[1]}" if digits[0] else ""


def image_files(folder: Path, skipped: Counter[str] | None = None) -> list[Path]:
    """Files directly in `folder` with an image format's extension, in natural order.

    `skipped` counts what else is there, by kind ("hidden file{s}").
    """
    skipped = Counter() if skipped is None else skipped
    images = []
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            skipped["hidden file{s}"] += 1
        elif path.is_dir():
            skipped["folder{s} inside a class"] += 1
        elif path.suffix.lower() not in _extensions():
            skipped["non-image file{s}"] += 1
        else:
            images.append(path)
    return images


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in _extensions()


@cache
def _extensions() -> dict[str, str]:
    """File extension -> format, for FORMATS."""
    return {e: f for e, f in Image.registered_extensions().items() if f in FORMATS}


def read_image_or_reason(paths: list[Path], size: int) -> Iterator[NDArray[np.uint8] | str]:
    """For each path, in order, its image as `read_image` gives it, or why there is none.

    Decodes on up to 8 threads: Pillow releases the interpreter lock.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        warnings.simplefilter("ignore")  # about huge images and odd metadata: handled below
        yield from pool.map(partial(_image_or_reason, size=size), paths)


def _image_or_reason(path: Path, size: int) -> NDArray[np.uint8] | str:
    try:
        return read_image(path, size)
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        return printable(first_line(error).replace(str(path), path.name))


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """One image file as RGB: its centre square, resized with antialiased bicubic. (size, size, 3).

    The first frame, rotated as EXIF says, transparency over white, 16 bits scaled to 8. The square
    is cut before resizing, so that no image is distorted and a long thin one needs no memory.
    This is RULE. Raises what Pillow raises, and ValueError above 25 megapixels.
    """
    with open_file(path, MAX_BYTES) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ValueError("more than 25 megapixels") from None
        except UnidentifiedImageError:
            raise ValueError(f"no image: give {', '.join(FORMATS)}") from None
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"{pixels / 1e6:.1f} megapixels; at most 25 are allowed")
        with image, _one_at_a_time if pixels > _SMALL else nullcontext():
            return _as_network_input(image, size)


def preprocess(image: str | Path | Image.Image, size: int) -> NDArray[np.uint8]:
    """An image file, or a picture of Pillow's, as a network takes it: uint8 (1, 3, size, size).

    Exactly what `leanres predict` does before the network, and what an exported ONNX file expects.
    size: the network's, in pixels. Raises as `read_image`.
    """
    if isinstance(image, Image.Image):
        pixels = _as_network_input(image, size)
    else:
        pixels = read_image(Path(image), size)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def _as_network_input(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.asarray(square(_rgb(ImageOps.exif_transpose(image)), size))


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, resized to size x size with antialiased bicubic."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values as bytes: integers have 16 bits; floats are in [0, 1], or in [0, 255] if any
    is above 1.
    """
    grey = values.astype(np.float64)  # in place from here on: 200 MB for 25 megapixels
    np.nan_to_num(grey, copy=False)
    if np.issubdtype(values.dtype, np.integer):
        grey /= 257
    elif grey.max() <= 1:
        grey *= 255
    return grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8)
