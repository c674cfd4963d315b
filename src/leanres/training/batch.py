"""Batches: which images a step trains on, augmented and mixed, at which size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.augment.mix import MIXES
from leanres.augment.registry import augment, check_like
from leanres.augment.rng import Draw, generator
from leanres.data.split import Split
from leanres.errors import UserError
from leanres.metrics.inference import memory_format
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts

# Pixels augmented at once, those of 2,048 images of 32 px: a small batch alone would leave a GPU
# idle between kernels.
PIXELS_AT_ONCE = 2048 * 32**2


class Batch(NamedTuple):
    """What a step trains on: inputs (N, C, H, W), targets (N,) or (N, K), the teacher's logits.

    `teacher_logits` (N, K) is None without a teacher.
    """

    inputs: Tensor
    targets: Tensor
    teacher_logits: Tensor | None = None

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` parts, fewer if it has fewer images."""
        logits = self.teacher_logits
        of_parts = repeat(None) if logits is None else iter(logits.chunk(count))
        for inputs, targets in zip(
            self.inputs.chunk(count), self.targets.chunk(count), strict=True
        ):
            yield Batch(inputs, targets, next(of_parts))


def epoch_order(train: Split, seed: int, epoch: int, balanced: bool = False) -> Tensor:
    """The order of the images in an epoch: their positions, (N,) int64."""
    rng = generator(seed, epoch)
    if balanced:
        order = _balanced_order(train.labels.cpu(), rng)
    else:
        order = torch.randperm(len(train), generator=rng)
    return order.to(train.images.device)


def _balanced_order(labels: Tensor, rng: torch.Generator) -> Tensor:
    """N positions, N / K of each class that occurs, give or take one. (N,) -> (N,).

    An image is drawn again only when each other one of its class was drawn as often.
    """
    by_class = torch.split(labels.argsort(stable=True), labels.bincount().tolist())
    classes = [members for members in by_class if len(members)]
    least, rest = divmod(len(labels), len(classes))
    drawn = []
    for place, k in enumerate(torch.randperm(len(classes), generator=rng).tolist()):
        members, count = classes[k], least + (place < rest)
        rounds = torch.rand(-(-count // len(members)), len(members), generator=rng).argsort(1)
        drawn.append(members[rounds.flatten()[:count]])
    return torch.cat(drawn)[torch.randperm(len(labels), generator=rng)]


def batches(
    train: Split, counts: StepCounts, first: int = 0, normalize: nn.Module | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and targets of each step, from step `first` on.

    Images (N, C, H, W) are repeated, augmented, and mixed where the recipe says so: targets are
    then probabilities (N, K), and else the labels (N,). Everything is drawn from the seed and the
    step. Images are uint8, or what `normalize` makes of them before they are augmented.
    """
    for epoch in range(first // counts.steps_per_epoch, counts.recipe.epochs):
        skipped = max(0, first - epoch * counts.steps_per_epoch)
        yield from _epoch_batches(train, counts, epoch, skipped, normalize)


def steps_augmented_together(train: Split, counts: StepCounts) -> int:
    """The number of steps whose images are augmented at once."""
    pixels = max(32**2, train.images[0, 0].numel())  # smaller images count as 32 px
    return max(1, PIXELS_AT_ONCE // (counts.images_per_step * pixels))


def _epoch_batches(
    train: Split, counts: StepCounts, epoch: int, first: int, normalize: nn.Module | None
) -> Iterator[tuple[Tensor, Tensor]]:
    recipe, size = counts.recipe, counts.batch_size
    order = epoch_order(train, recipe.seed, epoch, recipe.balanced_sampler)
    order = order[: counts.steps_per_epoch * size]
    block = steps_augmented_together(train, counts)
    for begin in range(first // block * block, counts.steps_per_epoch, block):
        part = order[begin * size : (begin + block) * size].repeat_interleave(
            recipe.augment_repeats
        )
        rng = generator(recipe.seed, epoch, begin + 1, device=train.images.device)
        images = train.images[part] if normalize is None else normalize(train.images[part])
        images = augment(images, recipe.augment, Draw(rng, part, epoch, recipe.seed))
        pieces = (torch.split(x, counts.images_per_step) for x in (images, train.labels[part]))
        for step, (inputs, labels) in enumerate(zip(*pieces, strict=True), begin):
            if step >= first:
                yield _mixed(inputs, labels, len(train.classes), recipe, epoch, step)


def _mixed(
    images: Tensor, labels: Tensor, classes: int, recipe: Recipe, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    if not recipe.mix:
        return images, labels
    # Drawn on the CPU: which mix it is decides which kernels are launched.
    rng = generator(recipe.seed, epoch, step + 1, 2)
    name, settings = recipe.mix[int(torch.randint(len(recipe.mix), (), generator=rng))]
    draw = Draw(generator(recipe.seed, epoch, step + 1, 3, device=images.device))
    return mixed(name, settings, images, F.one_hot(labels, classes).float(), draw)


def mixed(
    name: str, settings: Mapping[str, Any], images: Tensor, targets: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """One of MIXES applied. UserError where it does not return images and targets like these."""
    pair = MIXES[name](images, targets, draw, **settings)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(f"mix {name} returned a {type(pair).__name__}: return (images, targets)")
    for returned, given in zip(pair, (images, targets), strict=True):
        check_like(f"mix {name}", returned, given)
    return pair


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, C, H, W) float -> (N, C, scale H, scale W), antialiased, in the memory format."""
    if scale == 1:
        return images
    side = [round(scale * s) for s in images.shape[2:]]
    small = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=memory_format(images.device))


def whitening_sample(train: Split, seed: int) -> Tensor:
    """5,000 images drawn at random, fewer where they are large: some 5 million pixels."""
    pixels = train.images[0, 0].numel()
    count = max(1, min(5000, len(train), 5000 * 32 * 32 // pixels))
    chosen = torch.randperm(len(train), generator=generator(seed))[:count]
    return train.images[chosen.to(train.images.device)].cpu()
