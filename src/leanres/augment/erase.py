"""Augmentations that erase a part of each image: cutout, random erasing."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from leanres.augment.rng import Draw, rand, randint_below, uniform
from leanres.registry import Range

_ATTEMPTS = 10  # to draw a rectangle that fits into the image


def cutout(
    images: Tensor,
    draw: Draw,
    size: Annotated[int, Range(0, 4096)] = 8,
    fill: Annotated[float, Range(0, 255)] = 0.0,
    holes: Annotated[int, Range(1, 64)] = 1,
) -> Tensor:
    """Fill `holes` squares of `size` pixels per image.

    Centres are uniform over the image, so its borders clip some squares. (N, C, H, W) -> same.
    arXiv:1708.04552, section 3; with several holes, coarse dropout.
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

    scale: its share of the area. ratio: height / width, log-uniform. value: a number, or "random"
    for independent values of each pixel and channel (0 to 255 for uint8, [0, 1) for floats). Of 10
    random shapes the first that is smaller than the image is used; without one, the image is not
    changed. arXiv:1708.04896, algorithm 1, as in torchvision.
    """
    n, _, h, w = images.shape
    height, width, fits = _rectangle(n, h, w, scale, ratio, draw)
    chosen = fits & (rand((n,), draw.rng) < p)
    rows = _random_interval(height, h, draw) & chosen[:, None]
    covered = rows[:, None, :, None] & _random_interval(width, w, draw)[:, None, None, :]
    if isinstance(value, str):
        return torch.where(covered, _noise(images, draw), images)
    return images.masked_fill(covered, value)


def _rectangle(
    n: int, h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float], draw: Draw
) -> tuple[Tensor, Tensor, Tensor]:
    """Height and width (N,) int64 of the first attempt that fits, and whether one does (N,)."""
    area = h * w * uniform(*scale, (n, _ATTEMPTS), draw.rng)
    aspect = uniform(math.log(ratio[0]), math.log(ratio[1]), (n, _ATTEMPTS), draw.rng).exp()
    height, width = ((area * side).sqrt().round().long() for side in (aspect, 1 / aspect))
    fits = (height < h) & (width < w)
    # Of equal maxima argmax gives the first, on every device.
    first = fits.long().argmax(1, keepdim=True)
    return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0], fits.any(1)


def _random_interval(length: Tensor, side: int, draw: Draw) -> Tensor:
    """A mask of an interval at a random position, for each length (N,). -> (N, side) bool."""
    start = randint_below((side - length + 1).clamp(min=1), draw.rng)[:, None]
    at = torch.arange(side, device=length.device)
    return (at >= start) & (at < start + length[:, None])


def _noise(images: Tensor, draw: Draw) -> Tensor:
    """Uniform values over the range of the images' type. (N, C, H, W) -> same."""
    noise = rand(tuple(images.shape), draw.rng)
    return (noise if images.is_floating_point() else (256 * noise).floor()).to(images.dtype)
