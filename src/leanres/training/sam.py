"""Sharpness-aware minimisation: the gradient at the worst point near the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

ADAPTIVE_FLOOR = 0.01  # added to |w|, as the authors of ASAM do: weights at 0 may move as well


@contextmanager
def sam_perturbed_(model: nn.Module, rho: float, adaptive: bool = False) -> Iterator[None]:
    """Context in which the weights are perturbed by `rho` along their gradient, which is cleared.

    The perturbed weights are w + rho g / |g| (SAM, arXiv:2010.01412, equation 2), or `adaptive`
    with every weight's own size as its unit (ASAM, arXiv:2102.11600, equation 8). At the end
    weights and buffers, such as running means, are restored. Nothing waits for the device.
    """
    params: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
    values = [*params, *model.buffers()]
    with torch.no_grad():
        kept = [value.clone() for value in values]
        gradients = [p.grad for p in params if p.grad is not None]
        units = [p.abs() + ADAPTIVE_FLOOR if adaptive else torch.ones_like(p) for p in params]
        scaled = torch._foreach_mul(gradients, units)
        steps = list(torch._foreach_mul(torch._foreach_mul(scaled, units), rho))
        torch._foreach_div_(steps, get_total_norm(scaled) + 1e-12)
        torch._foreach_add_(params, steps)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(values, kept)
