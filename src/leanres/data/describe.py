"""Describe a data set: sizes, balance, pixel statistics, duplicates, and sample pictures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from leanres.data.arrays import CHANNELS, as_rgb
from leanres.data.fonts import drawable
from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError, shortened

MAX_PAIRS = 5  # of duplicates that a description lists
MAX_ROWS = 100  # classes that a picture shows
MAX_NAME = 32  # letters of a class name in a picture
_GAP, _ZOOM, _FONT_PX = 2, 2, 15
_SIDE_PX = 128  # of an image in a picture, at most


@dataclass(frozen=True)
class SplitDescription:
    """Statistics of one split; `mean` and `std` per channel, of pixels in [0, 1]."""

    num_images: int
    size: tuple[int, int]  # height, width in pixels
    per_class: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


@dataclass(frozen=True)
class Duplicates:
    """Images of split `second` that equal one of split `first` in every pixel; labels may differ.

    Within one split (`first == second`), images that equal an earlier one. `pairs` has the first
    few as positions (in `first`, in `second`), `files` their names ("test[17]" without a name).
    """

    first: str
    second: str
    count: int
    pairs: tuple[tuple[int, int], ...]
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Description:
    """Statistics of a data set; `dataclasses.asdict` of it is valid JSON."""

    name: str
    source: str
    classes: tuple[str, ...]
    splits: dict[str, SplitDescription]
    duplicates: tuple[Duplicates, ...]  # within each split, then between each two
    notes: tuple[str, ...]


def describe(dataset: Dataset) -> Description:
    """Statistics of every split, and the duplicates within and between them."""
    splits = dataset.splits
    compared = [*((name, name) for name in splits), *combinations(splits, 2)]
    return Description(
        dataset.name,
        dataset.source,
        dataset.train.classes,
        {name: _describe_split(split) for name, split in splits.items()},
        tuple(_duplicates(splits, first, second) for first, second in compared),
        dataset.notes,
    )


def _describe_split(split: Split) -> SplitDescription:
    counts = torch.bincount(split.labels, minlength=len(split.classes)).tolist()
    height, width = split.images.shape[2:]
    return SplitDescription(
        len(split),
        (height, width),
        dict(zip(split.classes, counts, strict=True)),
        *channel_stats(split),
        split.fingerprint,
    )


def _duplicates(splits: dict[str, Split], first: str, second: str) -> Duplicates:
    """Compare by digest: images with the same BLAKE2b-256 are equal in every pixel."""
    seen: dict[bytes, int] = {}
    for i, digest in enumerate(splits[first].digests):
        seen.setdefault(digest.tobytes(), i)
    found = ((seen.get(d.tobytes()), j) for j, d in enumerate(splits[second].digests))
    pairs = [(i, j) for i, j in found if i is not None and (first, i) != (second, j)]
    own, other, few = splits[first], splits[second], tuple(pairs[:MAX_PAIRS])
    files = tuple((own.file(i, first), other.file(j, second)) for i, j in few)
    return Duplicates(first, second, len(pairs), few, files)


def sample_grid(split: Split, per_class: int = 10, seed: int = 0) -> Image.Image:
    """A picture of random images, enlarged twice: one row per class, its name on the left. RGB.

    Of more than 100 classes the first 100 are shown; images above 128 px are reduced to that.
    """
    if per_class < 1:
        raise UserError(f"{per_class} images per class; give at least 1")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(split), generator=generator)
    labels = split.labels.cpu()[shuffled]
    names = split.classes[:MAX_ROWS]
    rows = [shuffled[labels == label][:per_class] for label in range(len(names))]
    pixels = as_rgb(split.images.cpu())
    bands = [_band([_zoomed(image) for image in pixels[row]], per_class, pixels) for row in rows]
    return _with_names(np.concatenate(bands), names, len(bands[0]))


def _band(tiles: list[NDArray[np.uint8]], columns: int, images: Tensor) -> NDArray[np.uint8]:
    """Tiles side by side, white if there are too few. (H, W, 3)."""
    height, width = (side + _GAP for side in _shown_size(images))
    band = np.full((height, columns * width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        band[: height - _GAP, i * width : (i + 1) * width - _GAP] = tile
    return band


def _shown_size(images: Tensor) -> tuple[int, int]:
    """Height and width in a picture of images (..., H, W): twice their own where that is small."""
    height, width = images.shape[-2:]
    scale = min(_ZOOM, _SIDE_PX / max(height, width))
    return max(1, int(scale * height)), max(1, int(scale * width))


def _zoomed(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) uint8 -> its size in a picture (h, w, 3), each pixel repeated, or averaged."""
    height, width = _shown_size(image)
    is_larger = height > image.shape[1]
    how = Image.Resampling.NEAREST if is_larger else Image.Resampling.LANCZOS
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return np.asarray(picture.resize((width, height), how))


def _with_names(grid: NDArray[np.uint8], names: tuple[str, ...], row_px: int) -> Image.Image:
    """The grid on white with a margin, each row's name right-aligned on its left."""
    drawn = [drawable(shortened(name, MAX_NAME), _FONT_PX) for name in names]
    left = int(max(font.getlength(text) for text, font in drawn)) + 24
    canvas = Image.new("RGB", (left + grid.shape[1] + 10, grid.shape[0] + 20), "white")
    canvas.paste(Image.fromarray(grid), (left, 10))
    draw = ImageDraw.Draw(canvas)
    for row, (text, font) in enumerate(drawn):
        middle = 10 + row * row_px + (row_px - _GAP) // 2
        draw.text((left - 10, middle), text, fill="#333333", font=font, anchor="rm")
    return canvas


def batch_grid(images: Tensor, columns: int = 16) -> Image.Image:
    """A picture of a batch, (N, C, H, W) uint8 or float in [0, 1], in reading order. RGB."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in CHANNELS or not shape[0] or columns < 1:
        raise UserError(f"images of {shape} in {columns} columns; give (N, C, H, W), 1 or more")
    pixels = images.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = as_rgb(pixels)
    tiles = [_zoomed(image) for image in pixels]
    wide = min(columns, len(tiles))
    rows = [tiles[i : i + wide] for i in range(0, len(tiles), wide)]
    grid = np.concatenate([_band(row, wide, pixels) for row in rows])
    return Image.fromarray(grid[:-_GAP, :-_GAP])
