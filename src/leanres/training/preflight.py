"""Catch errors that only a forward pass reveals, before a run folder is made."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from leanres.augment.registry import augment
from leanres.augment.rng import Draw, generator
from leanres.errors import UserError, first_line
from leanres.metrics.inference import evaluating, memory_format
from leanres.training.batch import shrink
from leanres.training.loop import TrainState
from leanres.training.setup import Setup


def _check_logits(logits: Tensor, num_classes: int) -> None:
    """UserError where a network, which may be the user's own, does not return logits (N, K)."""
    if logits.shape[1:] != (num_classes,):
        came = f"its output has shape (N, {', '.join(map(str, logits.shape[1:]))})"
        raise UserError(f"the network does not fit {num_classes} classes: {came}")


def preflight_check(setup: Setup, state: TrainState) -> None:
    """Run two images through augmentation, resizing and the networks.

    UserError for images too small for an augmentation or for the network, or too few of them in
    a part of a batch.
    """
    recipe, counts = setup.recipe, setup.counts
    _ = setup.class_weights  # refuses a class that is unknown
    before, after = setup.normalizers
    few = setup.train.subset([0, len(setup.train) - 1])
    per_step = {n for images in counts.images_of_steps for n in (images, counts.selected(images))}
    alone = any(len(torch.arange(n).chunk(recipe.accumulate)[-1]) == 1 for n in per_step)
    try:
        images = few.images if before is None else before(few.images)
        there, two = images.device, torch.arange(len(few), device=images.device)
        images = augment(images, recipe.augment, Draw(generator(0, device=there), two))
    except RuntimeError as error:  # torch's own, for padding wider than the image
        raise UserError(f"augment = {recipe.augment}: {first_line(error)}") from None
    images = images.to(setup.device.name)
    for scale in sorted({scale for _, scale in recipe.progressive_resizing} | {1.0}):
        try:
            inputs = shrink(after(images), scale)
            inputs = inputs.contiguous(memory_format=memory_format(inputs.device))
            for network in state.networks:
                with evaluating(network), torch.no_grad():
                    _check_logits(network(inputs), len(setup.train.classes))
                if alone:  # batch norm refuses one image whose map is one pixel
                    with torch.no_grad(), setup.device.seeded(0):
                        copy.deepcopy(network).train()(inputs[:1])
        except ValueError as error:
            raise UserError(
                f"batch_size = {recipe.batch_size}, accumulate = {recipe.accumulate} leave a part"
                f" of one image ({first_line(error)}): give a larger batch_size, or accumulate = 1"
            ) from None
        except RuntimeError as error:
            side = round(scale * images.shape[-1])
            raise UserError(
                f"images of {side} px do not fit this network ({first_line(error)}): give a"
                " larger --size, or a progressive_resizing that shrinks less"
            ) from None
