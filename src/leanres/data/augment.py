"""Augmentations: batched functions on (N, C, H, W) tensors, one independent draw per image.

Each takes uint8 or float images and a `Draw`, returns new images and leaves its input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from leanres.errors import UserError
from leanres.tables import Table


@dataclass(frozen=True)
class Draw:
    """Where randomness comes from: a generator, and which images these are in which epoch."""

    rng: Generator
    indices: Tensor | None = None  # (N,) positions in the training split; alternating_flip asks
    epoch: int = 0
    seed: int = 0


def generator(*counters: int, device: torch.device | str = "cpu") -> Generator:
    """A generator seeded by counters (seed, epoch, step, ...); the same counters, the same draws.

    Counters are mixed by numpy's SeedSequence, so neighbours are unrelated.
    """
    (state,) = np.random.SeedSequence(counters).generate_state(1, np.uint64)
    return Generator(device=device).manual_seed(int(state >> np.uint64(1)))


def crop(images: Tensor, draw: Draw, padding: int = 4, mode: str = "constant") -> Tensor:
    """Pad every side by `padding` pixels, cut the original size at a random place.

    mode: "constant" (zeros) or "reflect". (N, C, H, W) -> same.
    """
    n, _, h, w = images.shape
    padded = F.pad(_as_float_if_needed(images, mode), (padding,) * 4, mode=mode).to(images.dtype)
    y, x = _randint(2 * padding + 1, (2, n), draw.rng)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(n, device=images.device), :, y, x]


def _as_float_if_needed(images: Tensor, mode: str) -> Tensor:
    # Reflection is not implemented for bytes; float32 holds every byte exactly.
    return images.float() if mode == "reflect" and not images.is_floating_point() else images


def flip(images: Tensor, draw: Draw, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability p. (N, C, H, W) -> same."""
    return _mirror(images, _rand((len(images),), draw.rng) < p)


def alternating_flip(images: Tensor, draw: Draw) -> Tensor:
    """Mirror a fixed random half of the images in even epochs and the other half in odd ones.

    Two successive epochs thus show both faces of every image, which a fresh coin does only in
    half the cases. (N, C, H, W) -> same. arXiv:2404.00498, section 3.6.
    """
    if draw.indices is None:
        raise UserError("alternating_flip needs Draw.indices, the images' places in the split")
    coins = _coin(draw.indices, draw.seed)
    return _mirror(images, coins ^ bool(draw.epoch % 2))


def _coin(indices: Tensor, seed: int) -> Tensor:
    # A Bernoulli(1/2) that depends on image and seed alone: one bit of a 64-bit mix (splitmix64's
    # multipliers, wrapped to int64), so no table as long as the split has to be kept.
    z = indices + (seed + 1) * 0x1E3779B97F4A7C15 % 2**63
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return ((z ^ (z >> 31)) & 1).bool()


def _mirror(images: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, draw: Draw, size: int = 8, fill: float = 0.0) -> Tensor:
    """Fill one `size`-pixel square per image; its centre is uniform, so edges clip it.

    (N, C, H, W) -> same. arXiv:1708.04552, section 3.
    """
    n, _, h, w = images.shape
    y, x = (side * _rand((n, 1), draw.rng) for side in (h, w))
    rows = (torch.arange(h, device=images.device) + 0.5 - y).abs() < size / 2  # (N, H)
    columns = (torch.arange(w, device=images.device) + 0.5 - x).abs() < size / 2  # (N, W)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], fill)


def _rand(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device)


def _randint(high: int, shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randint(high, shape, generator=rng, device=rng.device)


Step = tuple[str, dict[str, Any]]
AUGMENTS: Table[Callable[..., Tensor]] = Table(
    "augmentation",
    {"crop": crop, "flip": flip, "alternating_flip": alternating_flip, "cutout": cutout},
)


def augment(images: Tensor, steps: Sequence[Step], draw: Draw) -> Tensor:
    """Apply the named steps in order, all from one generator. (N, C, H, W) -> same."""
    for name, settings in steps:
        images = AUGMENTS[name](images, draw, **settings)
    return images
