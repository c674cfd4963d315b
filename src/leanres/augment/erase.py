"""Augmentations that hide a part of each image."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from leanres.augment.rng import Draw, rand, randint_below, uniform
from leanres.registry import Range

_ATTEMPTS = 10  # a rectangle that does not fit is drawn anew, so often at most


def cutout(
    images: Tensor,
    draw: Draw,
    size: Annotated[int, Range(0, 4096)] = 8,
    fill: Annotated[float, Range(0, 255)] = 0.0,
    holes: Annotated[int, Range(1, 64)] = 1,
) -> Tensor:
    """Fill `holes` squares of `size` pixels per image; centres are uniform, so edges clip them.

    (N, C, H, W) -> same. arXiv:1708.04552, section 3; with several holes, coarse dropout.
    """
    n, _, h, w = images.shape
    y, x = (side * rand((n, holes, 1), draw.rng) for side in (h, w))
    rows = (torch.arange(h, device=images.device) + 0.5 - y).abs() < size / 2  # (N, holes, H)
    columns = (torch.arange(w, device=images.device) + 0.5 - x).abs() < size / 2  # (N, holes, W)
    covered = (rows[:, :, :, None] & columns[:, :, None, :]).any(1, keepdim=True)
    return images.masked_fill(covered, fill)


def random_erasing(
    images: Tensor,
    draw: Draw,
    p: Annotated[float, Range(0, 1)] = 0.5,
    scale: Annotated[tuple[float, float], Range(0, 1, ordered=True)] = (0.02, 0.33),
    ratio: Annotated[tuple[float, float], Range(0.01, 100, ordered=True)] = (0.3, 3.3),
    value: Annotated[float, Range(0, 255)] | Literal["random"] = 0.0,
) -> Tensor:
    """Fill a rectangle of each image with probability p. (N, C, H, W) -> same.

    scale: its share of the area; ratio: height / width, uniform in logarithm. value: a number,
    or "random" (a draw for each pixel and channel over bytes, or over [0, 1] for floats). Of 10
    drawn shapes the first inside the image counts; where none is, the image stays as it was.
    arXiv:1708.04896, algorithm 1, as in torchvision.
    """
    n, _, h, w = images.shape
    height, width, fits = _rectangle(n, h, w, scale, ratio, draw)
    chosen = fits & (rand((n,), draw.rng) < p)
    rows = _interval(height, h, draw) & chosen[:, None]
    covered = rows[:, None, :, None] & _interval(width, w, draw)[:, None, None, :]
    if isinstance(value, str):
        return torch.where(covered, _noise(images, draw), images)
    return images.masked_fill(covered, value)


def _rectangle(
    n: int, h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float], draw: Draw
) -> tuple[Tensor, Tensor, Tensor]:
    """Height, width (N,) int64 of the first attempt that is smaller than the image; if one is."""
    area = h * w * uniform(*scale, (n, _ATTEMPTS), draw.rng)
    aspect = uniform(math.log(ratio[0]), math.log(ratio[1]), (n, _ATTEMPTS), draw.rng).exp()
    height, width = ((area * side).sqrt().round().long() for side in (aspect, 1 / aspect))
    fits = (height < h) & (width < w)
    first = fits.long().argmax(1, keepdim=True)  # the first of equals on a CPU and a GPU
    return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0], fits.any(1)


def _interval(length: Tensor, side: int, draw: Draw) -> Tensor:
    """Intervals (N,) at random places of a side. -> (N, side) bool."""
    start = randint_below((side - length + 1).clamp(min=1), draw.rng)[:, None]
    at = torch.arange(side, device=length.device)
    return (at >= start) & (at < start + length[:, None])


def _noise(images: Tensor, draw: Draw) -> Tensor:
    noise = rand(tuple(images.shape), draw.rng)
    return (noise if images.is_floating_point() else (256 * noise).floor()).to(images.dtype)
