"""Describe a data set: sizes, balance, pixel statistics, duplicates, and sample pictures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError

MAX_PAIRS = 5  # of duplicates that a description lists
_GAP, _ZOOM, _FONT_PX = 2, 2, 15


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
    few as positions (in `first`, in `second`).
    """

    first: str
    second: str
    count: int
    pairs: tuple[tuple[int, int], ...]


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
    return Duplicates(first, second, len(pairs), tuple(pairs[:MAX_PAIRS]))


def sample_grid(split: Split, per_class: int = 10, seed: int = 0) -> Image.Image:
    """A picture of random images, enlarged twice: one row per class, its name on the left. RGB."""
    if per_class < 1:
        raise UserError(f"{per_class} images per class; give at least 1")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(split), generator=generator)
    labels = split.labels.cpu()[shuffled]
    rows = [shuffled[labels == label][:per_class] for label in range(len(split.classes))]
    pixels = split.images.cpu()
    bands = [_band([_zoomed(image) for image in pixels[row]], per_class, pixels) for row in rows]
    return _with_names(np.concatenate(bands), split.classes, len(bands[0]))


def _band(tiles: list[NDArray[np.uint8]], columns: int, images: Tensor) -> NDArray[np.uint8]:
    """Tiles side by side, white if there are too few. (H, W, 3)."""
    height, width = (_ZOOM * side + _GAP for side in images.shape[2:])
    band = np.full((height, columns * width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        band[: height - _GAP, i * width : (i + 1) * width - _GAP] = tile
    return band


def _zoomed(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) uint8 -> (2H, 2W, 3), each pixel repeated."""
    return image.permute(1, 2, 0).numpy().repeat(_ZOOM, 0).repeat(_ZOOM, 1)


def _with_names(grid: NDArray[np.uint8], names: tuple[str, ...], row_px: int) -> Image.Image:
    """The grid on white with a margin, each row's name right-aligned on its left."""
    font = ImageFont.load_default(_FONT_PX)
    left = int(max(font.getlength(name) for name in names)) + 24
    canvas = Image.new("RGB", (left + grid.shape[1] + 10, grid.shape[0] + 20), "white")
    canvas.paste(Image.fromarray(grid), (left, 10))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(names):
        middle = 10 + row * row_px + (row_px - _GAP) // 2
        draw.text((left - 10, middle), name, fill="#333333", font=font, anchor="rm")
    return canvas


def batch_grid(images: Tensor, columns: int = 16) -> Image.Image:
    """A picture of a batch, (N, 3, H, W) uint8 or float in [0, 1], in reading order. RGB."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or columns < 1:
        shape = tuple(images.shape)
        raise UserError(f"images of {shape} in {columns} columns; give (N, 3, H, W), 1 or more")
    pixels = images.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8)
    tiles = [_zoomed(image) for image in pixels]
    wide = min(columns, len(tiles))
    rows = [tiles[i : i + wide] for i in range(0, len(tiles), wide)]
    grid = np.concatenate([_band(row, wide, pixels) for row in rows])
    return Image.fromarray(grid[:-_GAP, :-_GAP])
