"""Random numbers: Draw, seeded generators, and samples on the generator's device.

Nothing here waits for the device: no value is copied back to the host.
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
    """The source of an augmentation's random numbers, and which images it is applied to."""

    rng: Generator
    indices: Tensor | None = None  # (N,) positions in the training split, for alternating_flip
    epoch: int = 0
    seed: int = 0


def generator(*counters: int, device: torch.device | str = "cpu") -> Generator:
    """A generator seeded by counters (seed, epoch, step, ...).

    numpy's SeedSequence mixes the counters, so that neighbouring ones give unrelated numbers.
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
    """Uniform integers from 0 to `high` - 1, int64."""
    return torch.randint(high, shape, generator=rng, device=rng.device)


def randint_below(high: Tensor, rng: Generator) -> Tensor:
    """Uniform integers, each from 0 to its own `high` - 1. int64 >= 1 -> same shape."""
    share = torch.rand(high.shape, generator=rng, device=rng.device, dtype=torch.float64)
    return (share * high).long().minimum(high - 1)  # a product may round up to `high`


def permutation(n: int, rng: Generator) -> Tensor:
    """The integers from 0 to n - 1 in random order. (n,) int64."""
    return torch.randperm(n, generator=rng, device=rng.device)


def rand_beta(alpha: float, shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Beta(alpha, alpha) in [0, 1], float32.

    X / (X + Y) of two Gamma(alpha) samples, each Gamma(alpha + 1) * U**(1 / alpha). Computed in
    logarithms, because a small alpha would round X and Y to 0. Marsaglia & Tsang 2000, section 6.
    """
    alphas = torch.full((2, *shape), alpha + 1, dtype=torch.float64, device=rng.device)
    gammas = torch._standard_gamma(alphas, generator=rng)  # torch.distributions takes no generator
    shares = 1 - torch.rand(alphas.shape, generator=rng, dtype=torch.float64, device=rng.device)
    first, second = gammas.log() + shares.log() / alpha
    return torch.sigmoid(first - second).float()


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small tensor on `device`, copied there asynchronously."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
