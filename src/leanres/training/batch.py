"""Batches: which images a step trains on, augmented and mixed, at which size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from leanres.training.distributed import ALONE, Parts, World
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts

# Pixels augmented at once, those of 2,048 images of 32 px: a small batch alone would leave a GPU
# idle between kernels.
PIXELS_AT_ONCE = 2048 * 32**2


class Batch(NamedTuple):
    """What a step trains on: inputs (N, C, H, W), targets (N,) or (N, K), the teacher's logits.

    `teacher_logits` (N, K) is None without a teacher. Of several processes each has the images of
    its own parts; `whole` are the parts of all of them, and None where this is everything. `seeds`
    has a seed for each part, where the network draws random numbers.
    """

    inputs: Tensor
    targets: Tensor
    teacher_logits: Tensor | None = None
    whole: Parts | None = None
    seeds: tuple[int, ...] = ()

    def divided(self, accumulate: int) -> Parts:
        """All images of the step, in parts."""
        return self.whole or Parts(len(self.targets), accumulate)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in parts of `size` images; the last one may have fewer."""
        if not len(self.targets):
            return
        logits = self.teacher_logits
        of_parts = repeat(None) if logits is None else iter(torch.split(logits, size))
        pieces = (torch.split(x, size) for x in (self.inputs, self.targets))
        for inputs, targets in zip(*pieces, strict=True):
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
    train: Split,
    counts: StepCounts,
    first: int = 0,
    normalize: nn.Module | None = None,
    world: World = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and targets of each step, from step `first` on.

    Images (N, C, H, W) are repeated, augmented, and mixed where the recipe says so: targets are
    then probabilities (N, K), and else the labels (N,). Everything is drawn from the seed, the step
    and the part of the batch, and images are mixed with others of their part. Of several processes
    each gets its own parts alone. Images are uint8, or what `normalize` makes of them before they
    are augmented.
    """
    for epoch in range(first // counts.steps_per_epoch, counts.recipe.epochs):
        skipped = max(0, first - epoch * counts.steps_per_epoch)
        for step, parts in _epoch_batches(train, counts, epoch, normalize, world, skipped):
            if step >= skipped:
                yield _joined(parts) if parts else _nothing(train, counts.recipe)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    images, targets = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(targets)


def _nothing(train: Split, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The batch of a process that has no part of it."""
    labels = train.labels[:0]
    mixed = labels.new_empty(0, len(train.classes), dtype=torch.float32)
    return train.images[:0], mixed if recipe.mix else labels


def steps_augmented_together(train: Split, counts: StepCounts) -> int:
    """The number of steps whose images are augmented at once, those of each part by themselves."""
    pixels = max(32**2, train.images[0, 0].numel())  # smaller images count as 32 px
    return max(1, PIXELS_AT_ONCE // (counts.parts(0).size * pixels))


def _epoch_batches(
    train: Split,
    counts: StepCounts,
    epoch: int,
    normalize: nn.Module | None,
    world: World,
    first: int,
) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
    """(step, the images and targets of each own part) of an epoch, from the block of `first` on."""
    recipe, size = counts.recipe, counts.batch_size
    order = epoch_order(train, recipe.seed, epoch, recipe.balanced_sampler)
    chosen = [
        positions.repeat_interleave(recipe.augment_repeats)
        for positions in torch.split(order[: counts.steps_per_epoch * size], size)
    ]
    block = steps_augmented_together(train, counts)
    for begin in range(first // block * block, counts.steps_per_epoch, block):
        steps = range(begin, min(begin + block, counts.steps_per_epoch))
        made: dict[int, list[tuple[Tensor, Tensor]]] = {step: [] for step in steps}
        for part in world.own(counts.parts(0)):
            of_part = [
                (step, positions)
                for step in steps
                if len(positions := _of_part(chosen[step], recipe.accumulate, part))
            ]
            if not of_part:
                continue
            images = _augmented(train, of_part, recipe, (epoch, begin + 1, 0, part), normalize)
            for (step, positions), own in zip(of_part, images, strict=True):
                draw = (epoch, step + 1)
                labels = train.labels[positions]
                made[step].append(_mixed(own, labels, len(train.classes), recipe, draw, part))
        yield from made.items()


def _of_part(positions: Tensor, accumulate: int, part: int) -> Tensor:
    """The positions of a step's images that are in the part; none where it has fewer parts."""
    size = Parts(len(positions), accumulate).size
    return positions[part * size : (part + 1) * size]


def _augmented(
    train: Split,
    of_part: list[tuple[int, Tensor]],
    recipe: Recipe,
    counters: tuple[int, ...],
    normalize: nn.Module | None,
) -> tuple[Tensor, ...]:
    """The images of several steps' parts, augmented at once with one generator."""
    positions = torch.cat([positions for _, positions in of_part])
    rng = generator(recipe.seed, *counters, device=train.images.device)
    images = train.images[positions] if normalize is None else normalize(train.images[positions])
    images = augment(images, recipe.augment, Draw(rng, positions, counters[0], recipe.seed))
    return torch.split(images, [len(positions) for _, positions in of_part])


def _mixed(
    images: Tensor,
    labels: Tensor,
    classes: int,
    recipe: Recipe,
    draw: tuple[int, int],
    part: int,
) -> tuple[Tensor, Tensor]:
    if not recipe.mix:
        return images, labels
    # Drawn on the CPU: which mix it is decides which kernels are launched.
    rng = generator(recipe.seed, *draw, 2)
    name, settings = recipe.mix[int(torch.randint(len(recipe.mix), (), generator=rng))]
    own = Draw(generator(recipe.seed, *draw, 3, part, device=images.device))
    return mixed(name, settings, images, F.one_hot(labels, classes).float(), own)


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
