"""Selective backpropagation: a small network selects the hard examples to train on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.training.batch import Batch
from leanres.training.parts import accumulate_
from leanres.training.setup import Setup


def select_hardest_(selector: nn.Module, batch: Batch, setup: Setup) -> Tensor:
    """Indices, ascending, of the images with the largest losses under the selector: (M,) int64.

    They are positions among all images of the step, whichever process has them. M follows from the
    recipe's `select_fraction`. The selector's gradients are accumulated over the whole batch, so
    that it learns from all images. The speed records for 96 % select half of each batch in this way
    (arXiv:2404.00498, section 5).
    """
    recipe, weights, world = setup.recipe, setup.class_weights, setup.world
    parts = batch.divided(recipe.accumulate)
    total: float | Tensor = parts.images  # that F.cross_entropy's mean is divided by
    if weights is not None and batch.targets.ndim == 1:
        total = weights[world.gather(batch.targets, world.counts(parts))].sum()

    of_images: list[Tensor] = []

    def of_part(part: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(
            logits,
            part.targets,
            weights,
            label_smoothing=recipe.label_smoothing,
            reduction="none",
        )
        of_images.append(losses.detach())
        return losses.sum() / total, losses.new_zeros(())

    accumulate_(selector, batch, setup, of_part)
    losses = torch.cat(of_images) if of_images else batch.inputs.new_empty(0)
    losses = world.gather(losses, world.counts(parts))
    return losses.topk(setup.counts.selected(parts.images)).indices.sort().values
