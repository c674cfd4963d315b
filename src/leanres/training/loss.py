"""The loss of a batch and its gradients, accumulated over parts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.training.batch import Batch
from leanres.training.losses import LOSSES
from leanres.training.parts import Mark, accumulate_, ignore
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup


def backward(
    forward: nn.Module, batch: Batch, setup: Setup, mark: Mark = ignore
) -> tuple[Tensor, Tensor]:
    """Accumulate a batch's gradients. -> its mean loss () and number of correct predictions ().

    For a mixed image, the class with the largest share counts as correct.
    """
    recipe, weights, parts = (
        setup.recipe,
        setup.class_weights,
        batch.divided(setup.recipe.accumulate),
    )
    mean_weight: Tensor | float = 1.0
    if weights is not None:
        targets = setup.world.gather(batch.targets, setup.world.counts(parts))
        mean_weight = _mean_weight(targets, weights)

    def of_part(part: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
        loss = loss_of(logits, part, recipe, weights, mean_weight)
        labels = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
        correct = (logits.detach().argmax(1) == labels).sum()
        return loss * (len(part.targets) / parts.images), correct

    return accumulate_(forward, batch, setup, of_part, mark)


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
    """Mean of the recipe's loss with the targets; with a teacher, plus the distillation loss.

    weights: of the classes, (K,); they weight the targets' loss alone, as F.cross_entropy does.
    `mean_weight` is that of all images of the step, of which these may be a part.
    logits: (N, K) float32 -> (). The distillation loss is the Kullback-Leibler divergence of the
    distributions at `distill_temperature` T, times T^2: arXiv:1503.02531, section 2.
    """
    loss = _of_targets(logits, batch.targets, recipe, weights, mean_weight)
    if batch.teacher_logits is None:
        return loss
    t, weight = recipe.distill_temperature, recipe.distill_weight
    own, theirs = ((x / t).log_softmax(1) for x in (logits, batch.teacher_logits))
    divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * t**2 * divergence


def _check_losses(name: str, losses: object, logits: Tensor) -> None:
    """UserError where a loss, which may be the user's own, is not (N,) with gradients."""
    if not isinstance(losses, Tensor) or losses.shape != logits.shape[:1]:
        came = tuple(losses.shape) if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        raise UserError(f"loss {name} returned {came}: return one loss per image, (N,)")
    if logits.requires_grad and not losses.requires_grad:
        raise UserError(f"loss {name} has no gradient: compute it from the logits, in PyTorch")


def _of_targets(
    logits: Tensor,
    targets: Tensor,
    recipe: Recipe,
    weights: Tensor | None,
    mean_weight: Tensor | float,
) -> Tensor:
    """The mean of the recipe's loss over the images, weighted by class. -> ()."""
    (name, settings), smoothing = recipe.loss, recipe.label_smoothing
    if name == "cross-entropy":  # PyTorch's kernel is faster than the formula
        loss = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        return loss if weights is None else loss * (_mean_weight(targets, weights) / mean_weight)
    shares = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    smoothed = shares * (1 - smoothing) + smoothing / logits.shape[1]
    losses = LOSSES[name](logits, smoothed, **settings)
    _check_losses(name, losses, logits)
    if weights is None:
        return losses.mean()
    return (losses * (shares @ weights)).mean() / mean_weight
