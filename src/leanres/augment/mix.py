"""Mixtures of images, which mix their targets too: MIXES.

Each takes images (N, C, H, W), uint8 or float, targets (N, K) of probabilities and a `Draw`, and
returns new ones; the target of an image is the mean of its sources' by their share in it.
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
    """Blend each image with another of the batch, by a share of its own from Beta(alpha, alpha).

    Bytes are rounded. (N, C, H, W), (N, K) -> same. arXiv:1710.09412, section 2.
    """
    share = rand_beta(alpha, (len(images),), draw.rng)
    partner = permutation(len(images), draw.rng)
    weight = share[:, None, None, None]
    mixed = weight * images.float() + (1 - weight) * images[partner].float()
    mixed = mixed if images.is_floating_point() else mixed.round()
    return mixed.to(images.dtype), _mean(targets, targets[partner], share)


def _mean(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    weight = share[:, None].to(own.dtype)
    return weight * own + (1 - weight) * other


def cutmix(
    images: Tensor, targets: Tensor, draw: Draw, alpha: Annotated[float, Range(0.01, 100)] = 1.0
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by another image's, from the same place.

    Its area is 1 - Beta(alpha, alpha) of the image, its centre uniform, so edges clip it; the
    share in the target is of the pixels replaced. (N, C, H, W), (N, K) -> same.
    arXiv:1905.04899, section 3.1; halves of sides in whole pixels, as in torchvision.
    """
    n, _, h, w = images.shape
    half = (1 - rand_beta(alpha, (n,), draw.rng)).sqrt() / 2
    partner = permutation(n, draw.rng)
    rows, columns = (_around((half * side).long(), side, draw) for side in (h, w))
    replaced = rows[:, None, :, None] & columns[:, None, None, :]
    kept = 1 - rows.float().mean(1) * columns.float().mean(1)
    return torch.where(replaced, images[partner], images), _mean(targets, targets[partner], kept)


def _around(half: Tensor, side: int, draw: Draw) -> Tensor:
    """Stretches of 2 * half pixels (N,), each about a random place of a side. (N, side) bool."""
    centre = randint(side, (len(half),), draw.rng)[:, None]
    at = torch.arange(side, device=half.device)
    return (at >= centre - half[:, None]) & (at < centre + half[:, None])


def ricap(
    images: Tensor, targets: Tensor, draw: Draw, beta: Annotated[float, Range(0.01, 100)] = 0.3
) -> tuple[Tensor, Tensor]:
    """Patch each image together from random crops of four, one in each corner.

    The boundaries, an image's own, are at a Beta(beta, beta) share of its sides, rounded.
    (N, C, H, W), (N, K) -> same. arXiv:1811.09030, section 3.
    """
    n, _, h, w = images.shape
    sources = torch.stack([permutation(n, draw.rng) for _ in range(4)], 1)  # (N, 4), by corner
    y, x = (_boundary(side, n, beta, draw) for side in (h, w))
    tall, down = _patches(y, h, (0, 0, 1, 1), draw)
    wide, right = _patches(x, w, (0, 1, 0, 1), draw)
    rows, columns = (torch.arange(side, device=images.device) for side in (h, w))
    corner = (2 * (rows >= y)[:, :, None] + (columns >= x)[:, None, :]).flatten(1)  # (N, H * W)
    source, dy, dx = (per.gather(1, corner).view(n, h, w) for per in (sources, down, right))
    patched = images[source, :, rows[:, None] + dy, columns + dx].permute(0, 3, 1, 2)
    shares = (tall * wide).to(targets.dtype) / (h * w)
    return patched.contiguous(), (shares[:, :, None] * targets[sources]).sum(1)


def _boundary(side: int, n: int, beta: float, draw: Draw) -> Tensor:
    """Where the second half begins, in pixels. (N, 1) int64."""
    return (side * rand_beta(beta, (n, 1), draw.rng)).round().long()


def _patches(
    boundary: Tensor, side: int, halves: tuple[int, ...], draw: Draw
) -> tuple[Tensor, Tensor]:
    """Lengths of the four patches on an axis, and how far on each one's pixels lie in its source.

    -> two (N, 4) int64; `halves` says whether a patch is in the first half or the second.
    """
    lengths = torch.cat([side - boundary if half else boundary for half in halves], 1)
    begins = torch.cat([boundary * half for half in halves], 1)
    return lengths, randint_below(side - lengths + 1, draw.rng) - begins


MIXES: Table[Callable[..., tuple[Tensor, Tensor]]] = Table(
    "mix", {"mixup": mixup, "cutmix": cutmix, "ricap": ricap}
)
