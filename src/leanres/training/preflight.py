"""What would fail in a training's first step, found before a folder is made."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from leanres.augment.registry import Draw, augment, generator
from leanres.data.split import Split
from leanres.errors import UserError
from leanres.metrics.inference import predict_logits
from leanres.training.batch import shrink
from leanres.training.device import Normalize
from leanres.training.loop import TrainState
from leanres.training.recipe import StepCounts


def preflight_check(plan: StepCounts, few: Split, state: TrainState, normalize: Normalize) -> None:
    """Find what no check of single settings finds, before a folder is made: two images go through.

    UserError for images too small for an augmentation or for the network, or too few of them in
    a part of a batch.
    """
    recipe = plan.recipe
    per_step = {plan.images_per_step, plan.kept_per_step}
    alone = any(len(torch.arange(n).chunk(recipe.accumulate)[-1]) == 1 for n in per_step)
    networks = [model for model in (state.model, state.selector) if model is not None]
    try:
        images = augment(few.images, recipe.augment, Draw(generator(0), torch.arange(len(few))))
    except RuntimeError as error:  # torch's own, for padding wider than the image
        raise UserError(f"augment = {recipe.augment}: {_first_line(error)}") from None
    for scale in sorted({scale for _, scale in recipe.progressive_resizing} | {1.0}):

        def prepared(batch: Tensor, scale: float = scale) -> Tensor:
            return shrink(normalize(batch), scale)

        try:
            for network in networks:
                predict_logits(network, images, normalize=prepared)
                if alone:  # batch norm refuses one image whose map is one pixel
                    model = copy.deepcopy(network).train()
                    with torch.no_grad(), torch.random.fork_rng():
                        model(prepared(images[:1].to(next(model.parameters()).device)))
        except ValueError as error:
            raise UserError(
                f"batch_size = {recipe.batch_size}, accumulate = {recipe.accumulate} leave a part"
                f" of one image ({_first_line(error)}): give a larger batch_size, or accumulate = 1"
            ) from None
        except RuntimeError as error:
            side = round(scale * images.shape[-1])
            raise UserError(
                f"images of {side} px do not fit this network ({_first_line(error)}): give a"
                " larger --size, or a resolution that shrinks less"
            ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
