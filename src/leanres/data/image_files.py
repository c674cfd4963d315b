"""Image files: list those of a folder, read one as a square of grey, RGB or RGBA pixels."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from leanres.data.greys import Greys
from leanres.errors import first_line, printable
from leanres.io import MIB, open_data, placeholder

MAX_PIXELS = 25_000_000  # checked in the header, before any pixel is decoded
MAX_BYTES = 256 * MIB  # 25 megapixels of 8 bytes, and room for metadata
# No others: icons hold an image of another size than their header says, EPS runs Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode
_one_at_a_time = Lock()  # decoding an image of 25 megapixels takes some hundred MB
_SMALL = 4_000_000  # pixels of an image that is decoded beside others
_AHEAD = 256  # images that are decoded before they are asked for
_AHEAD_BYTES = 64 * MIB  # of the contents of these


@dataclass(frozen=True)
class Unreadable:
    """An image file that cannot be read, and the reason in one line."""

    path: Path
    reason: str


class Decoded(NamedTuple):
    """A decoded image."""

    pixels: NDArray[np.uint8]  # (size, size, C)
    greys: Greys | None  # where it has grey values of more than 8 bits


ImageItem = Path | bytes | str  # a file, its content, or the reason why there is none


def input_rule(channels: int, whites: Mapping[str, float]) -> str:
    """How predict makes a network's input of an image file, for users of an ONNX file.

    whites: the network's, as `decode_image` takes them.
    """
    usual = "{}, 4095 or 65535, the first that none of its values exceeds"
    own = {kind: f"{white:g}" for kind, white in whites.items()}
    integer = own.get("integer", usual.format(255))
    floats = own.get("float", usual.format("1, 255"))
    over_white = "" if channels == 4 else "transparency over white; "
    return (
        "turned as its EXIF orientation says; grey of 16 or 32 bits clipped to 0 and white, scaled"
        f" to bytes and rounded, white being {integer}, in floats {floats};"
        f" {over_white}Pillow's mode {MODES[channels]}; the centre square of the shorter side, its"
        " left and top rounded down; resized to size x size by Pillow's BICUBIC, which is"
        f" antialiased; uint8 (N, {channels}, size, size), 0 to 255. Normalisation is part of the"
        " network."
    )


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that orders digits by value (class2 before class10) and ignores case.

    Two strings, as a folder may hold a million names: each number begins with its length.
    """
    return re.sub(r"0*([0-9]*)", _by_value, name.casefold()), name


def _by_value(digits: re.Match[str]) -> str:
    return f"\0{chr(len(digits[1]))}{digits[1]}" if digits[0] else ""


def image_files(
    folder: Path, skipped: Counter[str] | None = None, others: Set[Path] = frozenset()
) -> list[Path]:
    """Files in `folder` and its subfolders with an image format's extension, in natural order.

    `skipped` counts what else is there, by kind ("hidden file{s}"). `others` are the class folders
    (resolved) whose images these are not: folders that links bring in from there are skipped, as
    are those above.
    """
    return list(image_paths(folder, skipped, others))


def image_paths(
    folder: Path, skipped: Counter[str] | None = None, others: Set[Path] = frozenset()
) -> Iterator[Path]:
    """As `image_files`, one by one: one folder's names are in memory at a time."""
    real, above = folder.resolve(), folder.absolute().parent.resolve()  # it may be a link itself
    known = frozenset((real, *real.parents, above, *above.parents))
    yield from _image_paths(folder, Counter() if skipped is None else skipped, known, others)


def _image_paths(
    folder: Path, skipped: Counter[str], above: frozenset[Path], others: Set[Path]
) -> Iterator[Path]:
    """`above` are the folders on the way here: a link back to one of them would never end."""
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            skipped["hidden file{s}"] += 1
        elif path.is_dir():
            real = path.resolve()
            if real in above:
                skipped["link{s} to a folder above"] += 1
            elif real in others or any(outer in others for outer in real.parents):
                skipped["link{s} to another class"] += 1
            else:
                yield from _image_paths(path, skipped, above | {real}, others)
        elif not is_image_name(path.name):
            skipped["non-image file{s}"] += 1
        else:
            yield path


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in _extensions()


@cache
def _extensions() -> dict[str, str]:
    """File extension -> format, for FORMATS."""
    return {e: f for e, f in Image.registered_extensions().items() if f in FORMATS}


def decode_or_reason(
    items: Iterable[ImageItem],
    size: int,
    channels: int = 3,
    whites: Mapping[str, float] | None = None,
) -> Iterator[Decoded | str]:
    """For each item, in order, its image as `decode_image` gives it, or why there is none.

    Decodes on up to 8 threads (Pillow releases the interpreter lock), some hundred images ahead.
    """
    options = {"size": size, "channels": channels, "whites": whites}
    decode = partial(_decoded_or_reason, options=options)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        warnings.simplefilter("ignore")  # about huge images and odd metadata: handled below
        for chunk in _chunks(items):
            yield from pool.map(decode, chunk)


def _chunks(items: Iterable[ImageItem]) -> Iterator[list[ImageItem]]:
    """Items that are decoded together: some hundred, fewer where their contents are large."""
    chunk, size = list[ImageItem](), 0
    for item in items:
        chunk.append(item)
        size += len(item) if isinstance(item, bytes) else 0
        if len(chunk) == _AHEAD or size >= _AHEAD_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _decoded_or_reason(item: ImageItem, options: dict[str, Any]) -> Decoded | str:
    if isinstance(item, str):
        return item
    name = item.name if isinstance(item, Path) else ""
    try:
        if isinstance(item, bytes):
            return decode_image(io.BytesIO(item), **options)
        with open_data(item, MAX_BYTES) as file:
            return decode_image(file, **options)
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        reason = first_line(error).replace(str(item), name)
        return printable(reason.removeprefix(f"{name} is "))


def read_image(
    path: Path, size: int, channels: int = 3, whites: Mapping[str, float] | None = None
) -> NDArray[np.uint8]:
    """One image file as `decode_image` gives it, (size, size, C); raises what that raises."""
    with open_data(path, MAX_BYTES) as file:
        return decode_image(file, size, channels, whites).pixels


def decode_image(
    file: BinaryIO, size: int, channels: int = 3, whites: Mapping[str, float] | None = None
) -> Decoded:
    """An image as grey, RGB or RGBA: its centre square, resized with antialiased bicubic.

    The first frame, rotated as EXIF says; transparency over white where it is not kept. Grey values
    of more than 8 bits are scaled so that `whites` of their kind, else `Greys.white` of this image,
    is white. The square is cut before resizing, so that no image is distorted and a long
    thin one needs no memory. This is `input_rule`. Raises what Pillow raises, and ValueError above
    25 megapixels.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("more than 25 megapixels") from None
    except UnidentifiedImageError:
        file.seek(0)
        what = placeholder(file.read(256)) or f"no image: give {', '.join(FORMATS)}"
        raise ValueError(what) from None
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels / 1e6:.1f} megapixels; at most 25 are allowed")
    with image, _one_at_a_time if pixels > _SMALL else nullcontext():
        return _as_network_input(image, size, channels, whites)


def preprocess(
    image: str | Path | Image.Image,
    size: int,
    channels: int = 3,
    whites: Mapping[str, float] | None = None,
) -> NDArray[np.uint8]:
    """An image file, or a picture of Pillow's, as a network takes it: uint8 (1, C, size, size).

    Exactly what `leanres predict` does before the network, and what an exported ONNX file expects.
    size, channels, whites: the network's: in pixels; 1, 3 or 4; the grey value that is white, as in
    {"integer": 4095}, where it was trained on greys of more than 8 bits. Raises as `read_image`.
    """
    if isinstance(image, Image.Image):
        pixels = _as_network_input(image, size, channels, whites).pixels
    else:
        pixels = read_image(Path(image), size, channels, whites)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def _as_network_input(
    image: Image.Image, size: int, channels: int, whites: Mapping[str, float] | None = None
) -> Decoded:
    turned, greys = ImageOps.exif_transpose(image), None
    if turned.mode.startswith("I") or turned.mode == "F":
        values, greys = _grey_values(np.asarray(turned))
        white = (whites or {}).get(greys.kind, greys.white)
        turned = Image.fromarray(_eight_bits(values, white))
    pixels = np.asarray(square(_as_mode(turned, MODES[channels]), size))
    return Decoded(pixels.reshape(size, size, channels), greys)


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, resized to size x size with antialiased bicubic."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of 8 bits in any mode as L, RGB or RGBA."""
    if image.has_transparency_data and mode != "RGBA":
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert(mode)
    return image.convert(mode)


def _grey_values(values: NDArray[np.generic]) -> tuple[NDArray[np.float64], Greys]:
    """The values as finite floats, and what is known of them."""
    kind = "integer" if np.issubdtype(values.dtype, np.integer) else "float"
    grey = values.astype(np.float64)  # in place from here on: 200 MB for 25 megapixels
    np.nan_to_num(grey, copy=False)
    return grey, Greys(kind, float(grey.min()), float(grey.max()))


def _eight_bits(grey: NDArray[np.float64], white: float) -> NDArray[np.uint8]:
    """Grey values from 0 to `white` as bytes; the input is overwritten."""
    grey *= 255 / white
    return grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8)
