"""Muon: momentum whose direction is orthogonalised per weight matrix (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Quintic Newton-Schulz with maximal slope at 0 (K. Jordan, "Muon", 2024): singular values land
# in about [0.7, 1.2], which trains as well as exact ones.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: U V^T of `matrix` = U S V^T. (m, n) -> same."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = x / (x.norm() + 1e-7)  # brings every singular value under 1
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + torch.addmm(b * gram, gram, gram, alpha=c) @ x
    result: Tensor = x.T if matrix.size(0) > matrix.size(1) else x
    return result


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for convolution filters, their norm reset at each step.

    Filters (o, i, k, k) are flattened to (o, i k k). `normalize` sets each filter bank's Frobenius
    norm to sqrt(o) before the update, so lr is the relative size of a step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        steps: int = 3,
        normalize: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "steps": steps,
                "normalize": normalize,
                "weight_decay": weight_decay,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update_(p, group)
        return loss

    def _update_(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        assert p.grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
        direction = p.grad.add(buffer, alpha=group["momentum"])
        update = orthogonalize(direction.flatten(1), group["steps"]).view_as(direction)
        if group["normalize"]:
            p.mul_(len(p) ** 0.5 / p.norm())
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
