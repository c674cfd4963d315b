"""Where randomness comes from: Draw, seeded generators, and draws on their device.

Nothing here waits for the device: no value is read back, so an epoch of draws is queued at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor


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


def rand(shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Uniform in [0, 1), float32."""
    return torch.rand(shape, generator=rng, device=rng.device)


def uniform(low: float, high: float, shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Uniform in [low, high), float32."""
    return low + (high - low) * rand(shape, rng)


def randint(high: int, shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Uniform whole numbers from 0 to below `high`, int64."""
    return torch.randint(high, shape, generator=rng, device=rng.device)


def randint_below(high: Tensor, rng: Generator) -> Tensor:
    """Uniform whole numbers, each from 0 to below its own `high` >= 1. int64 -> same shape."""
    share = torch.rand(high.shape, generator=rng, device=rng.device, dtype=torch.float64)
    return (share * high).long().minimum(high - 1)  # 64-bit: a product may round up to `high`


def permutation(n: int, rng: Generator) -> Tensor:
    """The numbers below n in random order. (n,) int64."""
    return torch.randperm(n, generator=rng, device=rng.device)


def rand_beta(alpha: float, shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Beta(alpha, alpha) in [0, 1], float32.

    X / (X + Y) of two Gamma(alpha), each Gamma(alpha + 1) * U**(1 / alpha), in logarithms: a
    small alpha would round X and Y to 0. Marsaglia & Tsang 2000, section 6.
    """
    alphas = torch.full((2, *shape), alpha + 1, dtype=torch.float64, device=rng.device)
    gammas = torch._standard_gamma(alphas, generator=rng)  # torch.distributions takes no generator
    shares = 1 - torch.rand(alphas.shape, generator=rng, dtype=torch.float64, device=rng.device)
    first, second = gammas.log() + shares.log() / alpha
    return torch.sigmoid(first - second).float()


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small table on `device`, copied there without waiting."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
