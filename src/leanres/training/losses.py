"""LOSSES: the loss of an image by the name of its function; one function and one entry each.

A loss takes logits (N, K) float32 and target probabilities (N, K), smoothed and mixed as the recipe
says, and returns the loss of each image (N,). Parameters with a default are settings of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from leanres.registry import Table


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-likelihood, averaged over the targets. (N, K), (N, K) -> (N,)."""
    return -(targets * logits.log_softmax(1)).sum(1)


LOSSES: Table[Callable[..., Tensor]] = Table(
    "loss", {"cross-entropy": cross_entropy}, takes=("logits", "targets")
)
