"""Muon: momentum whose direction is orthogonalised per weight matrix (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Quintic Newton-Schulz with maximal slope at 0 (K. Jordan, "Muon", 2024): singular values land
# in about [0.7, 1.2], which trains as well as exact ones.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: U V^T of each U S V^T. (N, m, n) -> same."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # brings every singular value under 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for convolution filters, their norm reset at each step.

    Filters (o, i, k, k) are flattened to (o, i k k); those of one shape are updated together. Each
    filter bank's Frobenius norm is set to sqrt(o) before the update, so lr is the relative size
    of a step.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, steps: int = 3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                self._update_(params, group)
        return loss

    def _update_(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """One update of filters (o, i, k, k) of one shape."""
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        directions = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        # As channels-last filters lie in memory: the order of a matrix's columns does not matter.
        whole = torch.stack([d.movedim(1, 3) for d in directions])  # (N, o, k, k, i)
        updates = orthogonalize(whole.flatten(2), group["steps"]).view_as(whole).movedim(4, 2)
        scales = len(params[0]) ** 0.5 / torch.stack(torch._foreach_norm(params))
        torch._foreach_mul_(params, list(scales))
        torch._foreach_sub_(params, list(updates * group["lr"]))

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
