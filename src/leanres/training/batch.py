"""What a step trains on: which images, augmented and mixed, at which size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leanres.data.augment import Draw, augment, generator
from leanres.data.mix import MIXES
from leanres.data.split import Split
from leanres.training.recipe import Recipe


class Batch(NamedTuple):
    """What a step trains on: inputs (N, C, H, W), targets (N,) or (N, K), and, where there is a
    teacher, its logits (N, K)."""

    inputs: Tensor
    targets: Tensor
    taught: Tensor | None = None

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in so many parts, or fewer where it has fewer images."""
        taught = repeat(None) if self.taught is None else iter(self.taught.chunk(count))
        for inputs, targets in zip(
            self.inputs.chunk(count), self.targets.chunk(count), strict=True
        ):
            yield Batch(inputs, targets, next(taught))


def epoch_order(train: Split, seed: int, epoch: int) -> Tensor:
    """The positions of the images in the order in which an epoch takes them, (N,) int64."""
    order = torch.randperm(len(train), generator=generator(seed, epoch))
    return order.to(train.images.device)


def training_batch(
    train: Split, indices: Tensor, recipe: Recipe, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """What step `step` of an epoch trains on: images (N, C, H, W) and their targets.

    Images are repeated, augmented, and mixed where the recipe says so: targets are then
    probabilities (N, K), and else the labels (N,).
    """
    indices = indices.repeat_interleave(recipe.copies)
    images, targets = train.images[indices], train.labels[indices]
    draw = Draw(
        generator(recipe.seed, epoch, step + 1, device=images.device), indices, epoch, recipe.seed
    )
    images = augment(images, recipe.augment, draw)
    if recipe.mix:
        # Which mix it is decides what the device computes, so it is drawn where it can be read.
        rng = generator(recipe.seed, epoch, step + 1, 2)
        name, settings = recipe.mix[int(torch.randint(len(recipe.mix), (), generator=rng))]
        shares = F.one_hot(targets, len(train.classes)).float()
        images, targets = MIXES[name](images, shares, draw, **settings)
    return images, targets


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, C, H, W) float -> (N, C, scale H, scale W), antialiased, channels last."""
    if scale == 1:
        return images
    side = [round(scale * s) for s in images.shape[2:]]
    small = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


def whitening_sample(train: Split, seed: int) -> Tensor:
    """5,000 images drawn at random, fewer where they are large: some 5 million pixels."""
    pixels = train.images[0, 0].numel()
    count = max(1, min(5000, len(train), 5000 * 32 * 32 // pixels))
    chosen = torch.randperm(len(train), generator=generator(seed))[:count]
    return train.images[chosen.to(train.images.device)].cpu()
