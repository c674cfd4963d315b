"""Catch errors that only a forward pass reveals, before a run folder is made."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.augment.registry import augment
from leanres.augment.rng import Draw, generator
from leanres.errors import UserError, first_line
from leanres.metrics.inference import evaluating, memory_format
from leanres.training.batch import Batch, mixed, shrink
from leanres.training.loop import TrainState
from leanres.training.loss import loss_of
from leanres.training.parts import check_buffers
from leanres.training.setup import Setup


def _check_logits(logits: object, num_classes: int) -> None:
    """UserError where a network, which may be the user's own, does not return logits (N, K)."""
    if not isinstance(logits, Tensor):
        raise UserError(f"the network returns a {type(logits).__name__}: return logits (N, K)")
    if logits.shape[1:] != (num_classes,):
        came = f"its output has shape (N, {', '.join(map(str, logits.shape[1:]))})"
        raise UserError(f"the network does not fit {num_classes} classes: {came}")


def preflight_check(setup: Setup, state: TrainState) -> None:
    """Run two images through augmentation, mixes, resizing, the networks and the loss.

    UserError for images too small for an augmentation or for the network, too few of them in a
    part of a batch, and for functions of the user's that do not return what they should.
    """
    recipe, counts, size = setup.recipe, setup.counts, setup.world.size
    if size > (parts := recipe.accumulate):
        raise UserError(
            f"{size} processes need as many parts of a batch, and accumulate is {parts}: give --set"
            f" accumulate={size}, which is another recipe, or --processes {parts}"
        )
    _ = setup.class_weights  # refuses a class that is unknown
    for step in (0, counts.total - 1):
        counts.lr_factor(step)
    images, targets = _two_images(setup)
    per_step = {n for images in counts.images_of_steps for n in (images, counts.selected(images))}
    alone = any(len(torch.arange(n).chunk(recipe.accumulate)[-1]) == 1 for n in per_step)
    for scale in sorted({scale for _, scale in recipe.progressive_resizing} | {1.0}):
        inputs = shrink(setup.normalizers[1](images), scale)
        inputs = inputs.contiguous(memory_format=memory_format(inputs.device))
        for network in state.networks:
            logits = _forward(network, inputs, setup, alone)
            if size > 1:
                check_buffers(copy.deepcopy(network).train(), inputs)
    loss_of(logits.float().requires_grad_(), Batch(inputs, targets), recipe, setup.class_weights)


def _two_images(setup: Setup) -> tuple[Tensor, Tensor]:
    """The first and the last training image, augmented, and their targets, each mix tried."""
    recipe, before = setup.recipe, setup.normalizers[0]
    few = setup.train.subset([0, len(setup.train) - 1])
    try:
        images = few.images if before is None else before(few.images)
        there, two = images.device, torch.arange(len(few), device=images.device)
        images = augment(images, recipe.augment, Draw(generator(0, device=there), two))
    except RuntimeError as error:  # torch's own, for padding wider than the image
        raise UserError(f"augment = {recipe.augment}: {first_line(error)}") from None
    targets = F.one_hot(few.labels, len(few.classes)).float()
    for name, settings in recipe.mix:
        mixed(name, settings, images, targets, Draw(generator(0, device=there)))
    return images.to(setup.device.name), targets.to(setup.device.name)


def _forward(network: nn.Module, inputs: Tensor, setup: Setup, alone: bool) -> Tensor:
    """The logits of two images; with `alone` one image is tried in training mode too."""
    recipe, side = setup.recipe, inputs.shape[-1]
    try:
        with evaluating(network), torch.no_grad():
            logits: Tensor = network(inputs)
    except RuntimeError as error:
        raise UserError(
            f"images of {side} px do not fit this network ({first_line(error)}): give a"
            " larger --size, or a progressive_resizing that shrinks less"
        ) from None
    _check_logits(logits, len(setup.train.classes))
    if alone:  # batch norm refuses one image whose map is one pixel
        try:
            with torch.no_grad(), setup.device.seeded(0):
                copy.deepcopy(network).train()(inputs[:1])
        except ValueError as error:
            raise UserError(
                f"batch_size = {recipe.batch_size}, accumulate = {recipe.accumulate} leave a part"
                f" of one image ({first_line(error)}): give a larger batch_size, or accumulate = 1"
            ) from None
    return logits
