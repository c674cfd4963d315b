"""The loss of a batch and its gradients, accumulated over parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.training.batch import Batch
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup

Mark = Callable[[str], object]  # called with the name of each part of a step once it is done


def ignore(part: str) -> None:
    """The `Mark` that does nothing."""


def backward(
    forward: nn.Module, batch: Batch, setup: Setup, mark: Mark = ignore
) -> tuple[Tensor, Tensor]:
    """Accumulate a batch's gradients. -> its mean loss () and number of correct predictions ().

    For a mixed image, the class with the largest share counts as correct.
    """
    recipe, weights, whole = setup.recipe, setup.class_weights, len(batch.targets)
    mean_weight = 1.0 if weights is None else _mean_weight(batch.targets, weights)
    results = []
    for part in batch.parts(recipe.accumulate):
        with setup.device.autocast():
            logits = forward(part.inputs)
        mark("forward")
        loss = loss_of(logits.float(), part, recipe, weights, mean_weight)
        loss = loss * (len(part.targets) / whole)
        loss.backward()  # type: ignore[no-untyped-call]
        labels = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
        results.append((loss.detach(), (logits.detach().argmax(1) == labels).sum()))
        mark("backward")
    loss, correct = (torch.stack(column).sum(0) for column in zip(*results, strict=True))
    return loss, correct


def _mean_weight(targets: Tensor, weights: Tensor) -> Tensor | float:
    """What F.cross_entropy's weighted sum is divided by, per image: 1 for mixed targets (N, K)."""
    return weights[targets].mean() if targets.ndim == 1 else 1.0


def loss_of(
    logits: Tensor,
    batch: Batch,
    recipe: Recipe,
    weights: Tensor | None = None,
    mean_weight: Tensor | float = 1.0,
) -> Tensor:
    """Mean cross-entropy with the targets; with a teacher, plus the distillation loss.

    weights: of the classes, (K,); they weight the cross-entropy alone, as F.cross_entropy does.
    `mean_weight` is that of all images of the step, of which these may be a part.
    logits: (N, K) float32 -> (). The distillation loss is the Kullback-Leibler divergence of the
    distributions at `distill_temperature` T, times T^2: arXiv:1503.02531, section 2.
    """
    smoothing, weight = recipe.label_smoothing, recipe.distill_weight
    loss = F.cross_entropy(logits, batch.targets, weights, label_smoothing=smoothing)
    if weights is not None:
        loss = loss * (_mean_weight(batch.targets, weights) / mean_weight)
    if batch.teacher_logits is None:
        return loss
    t = recipe.distill_temperature
    own, theirs = ((x / t).log_softmax(1) for x in (logits, batch.teacher_logits))
    divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * t**2 * divergence
