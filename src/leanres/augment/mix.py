"""MIXES: augmentations that combine several images, and their targets accordingly.

A mix is a function of images (N, C, H, W), uint8 or float, their targets (N, K), which are
probabilities, and a `Draw`. It returns new ones. The target of a mixed image is the mean of its
source images' targets, weighted by their share of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from leanres.augment.rng import Draw, permutation, rand_beta, randint, randint_below
from leanres.registry import Range, Table


def mixup(
    images: Tensor, targets: Tensor, draw: Draw, alpha: Annotated[float, Range(0.01, 100)] = 0.2
) -> tuple[Tensor, Tensor]:
    """Blend each image with another of the batch, with a weight from Beta(alpha, alpha) per image.

    uint8 images are rounded. (N, C, H, W), (N, K) -> same. arXiv:1710.09412, section 2.
    """
    share = rand_beta(alpha, (len(images),), draw.rng)
    partner = permutation(len(images), draw.rng)
    weight = share[:, None, None, None]
    mixed = weight * images.float() + (1 - weight) * images[partner].float()
    mixed = mixed if images.is_floating_point() else mixed.round()
    return mixed.to(images.dtype), _weighted(targets, targets[partner], share)


def _weighted(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * own + (1 - share) * other. (N, K), (N, K), (N,) -> (N, K)."""
    weight = share[:, None].to(own.dtype)
    return weight * own + (1 - weight) * other


def cutmix(
    images: Tensor, targets: Tensor, draw: Draw, alpha: Annotated[float, Range(0.01, 100)] = 1.0
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image with the same rectangle of another image.

    Its share of the area is 1 - Beta(alpha, alpha). Its centre is uniform, so the borders clip
    some; targets are weighted by the pixels really replaced. (N, C, H, W), (N, K) -> same.
    arXiv:1905.04899, section 3.1; half the sides in whole pixels, as in torchvision.
    """
    n, _, h, w = images.shape
    half = (1 - rand_beta(alpha, (n,), draw.rng)).sqrt() / 2
    partner = permutation(n, draw.rng)
    rows, columns = (_random_span((half * side).long(), side, draw) for side in (h, w))
    replaced = rows[:, None, :, None] & columns[:, None, None, :]
    kept = 1 - rows.float().mean(1) * columns.float().mean(1)
    mixed = torch.where(replaced, images[partner], images)
    return mixed, _weighted(targets, targets[partner], kept)


def _random_span(half: Tensor, side: int, draw: Draw) -> Tensor:
    """Masks of 2 * half pixels (N,), each around a random centre, clipped. -> (N, side) bool."""
    centre = randint(side, (len(half),), draw.rng)[:, None]
    at = torch.arange(side, device=half.device)
    return (at >= centre - half[:, None]) & (at < centre + half[:, None])


def ricap(
    images: Tensor, targets: Tensor, draw: Draw, beta: Annotated[float, Range(0.01, 100)] = 0.3
) -> tuple[Tensor, Tensor]:
    """Assemble each image from random crops of four images, one in each corner.

    The boundaries are at a Beta(beta, beta) share of the sides, rounded, for each image anew.
    (N, C, H, W), (N, K) -> same. arXiv:1811.09030, section 3.
    """
    n, _, h, w = images.shape
    sources = torch.stack([permutation(n, draw.rng) for _ in range(4)], 1)  # (N, 4), by corner
    y, x = ((side * rand_beta(beta, (n, 1), draw.rng)).round().long() for side in (h, w))
    tall, down = _patches(y, h, (0, 0, 1, 1), draw)
    wide, right = _patches(x, w, (0, 1, 0, 1), draw)
    rows, columns = (torch.arange(side, device=images.device) for side in (h, w))
    corner = (2 * (rows >= y)[:, :, None] + (columns >= x)[:, None, :]).flatten(1)  # (N, H * W)
    source, dy, dx = (per.gather(1, corner).view(n, h, w) for per in (sources, down, right))
    patched = images[source, :, rows[:, None] + dy, columns + dx].permute(0, 3, 1, 2)
    shares = (tall * wide).to(targets.dtype) / (h * w)
    return patched.contiguous(), (shares[:, :, None] * targets[sources]).sum(1)


def _patches(
    boundary: Tensor, side: int, halves: tuple[int, ...], draw: Draw
) -> tuple[Tensor, Tensor]:
    """Lengths of the four patches along an axis, and the random offsets into their source images.

    `halves` tells whether a patch is in the first half (0) or the second (1). -> two (N, 4) int64.
    """
    lengths = torch.cat([side - boundary if half else boundary for half in halves], 1)
    starts = torch.cat([boundary * half for half in halves], 1)
    return lengths, randint_below(side - lengths + 1, draw.rng) - starts


MIXES: Table[Callable[..., tuple[Tensor, Tensor]]] = Table(
    "mix",
    {"mixup": mixup, "cutmix": cutmix, "ricap": ricap},
    takes=("images", "targets", "draw"),
)
