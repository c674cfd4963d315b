"""Batches: every image once an epoch, mixed and copied as the recipe says, from any step on."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from leanres.augment.mix import MIXES
from leanres.augment.registry import augment
from leanres.augment.rng import Draw, generator
from leanres.data.split import Split
from leanres.training.batch import batches, epoch_order, steps_augmented_together
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts


def by_hand(split: Split, recipe: Recipe, epoch: int, steps: range) -> list[Tensor]:
    """The augmented images of some steps that are augmented at once, part by part."""
    order, size = epoch_order(split, recipe.seed, epoch), recipe.batch_size
    made: list[list[Tensor]] = [[] for _ in steps]
    for part in range(recipe.accumulate):
        chosen = [
            order[step * size : (step + 1) * size]
            .repeat_interleave(recipe.augment_repeats)
            .chunk(recipe.accumulate)[part]
            for step in steps
        ]
        rng = generator(recipe.seed, epoch, steps.start + 1, 0, part)
        indices = torch.cat(chosen)
        draw = Draw(rng, indices, epoch, recipe.seed)
        images = augment(split.images[indices], recipe.augment, draw)
        for k, own in enumerate(images.split(len(chosen[0]))):
            made[k].append(own)
    return [torch.cat(parts) for parts in made]


@pytest.mark.parametrize(
    ("batch_size", "augment_repeats", "accumulate", "together"),
    [(50, 1, 1, 40), (300, 1, 1, 6), (300, 3, 1, 2), (300, 3, 4, 9), (1200, 1, 1, 1)],
)
def test_small_batches_are_augmented_together_and_begin_anywhere(
    digits, small, batch_size, augment_repeats, accumulate, together
):
    split = digits.train
    given = {"batch_size": batch_size, "augment_repeats": augment_repeats}
    recipe = replace(small, mix=(), accumulate=accumulate, **given)
    counts = StepCounts(recipe, len(split))
    assert steps_augmented_together(split, counts) == together
    large = replace(split, images=split.images.repeat(1, 1, 2, 2))
    assert steps_augmented_together(large, counts) == max(1, together // 4)
    whole = list(batches(split, counts))
    assert len(whole) == counts.total == 2 * counts.steps_per_epoch
    for epoch in range(2):
        begin = epoch * counts.steps_per_epoch
        first = range(min(together, counts.steps_per_epoch))
        for (images, _), oracle in zip(
            whole[begin:], by_hand(split, recipe, epoch, first), strict=False
        ):
            assert torch.equal(images, oracle)
    for first in (
        1,
        counts.steps_per_epoch - 1,
        counts.steps_per_epoch,
        counts.total - 1,
        counts.total,
    ):
        rest = list(batches(split, counts, first))
        assert len(rest) == counts.total - first
        for (images, labels), (other, others) in zip(rest, whole[first:], strict=True):
            assert torch.equal(images, other)
            assert torch.equal(labels, others)


def test_every_image_is_seen_once_an_epoch_with_its_label(digits, small):
    split = digits.train
    recipe = replace(small, mix=(), augment=(), batch_size=100)
    counts = StepCounts(recipe, len(split))
    known = {
        image.numpy().tobytes(): int(y) for image, y in zip(split.images, split.labels, strict=True)
    }
    images, labels = zip(*islice(batches(split, counts), counts.steps_per_epoch), strict=True)
    seen = [image.numpy().tobytes() for image in torch.cat(images)]
    assert [known[pixels] for pixels in seen] == torch.cat(labels).tolist()
    assert len(seen) == counts.steps_per_epoch * 100
    assert len(seen) - len(set(seen)) <= len(split) - len(known)  # but for doubles in the data


def test_each_batch_is_mixed_by_one_of_the_recipes_mixes(digits, small):
    """Every batch is what one of the mixes makes of the augmented images; each is met."""
    split, met = digits.train, set()
    recipe = replace(small, batch_size=100, accumulate=1)
    plain = batches(split, StepCounts(replace(recipe, mix=()), len(split)))
    mixed = batches(split, StepCounts(recipe, len(split)))
    for step, ((augmented, labels), (images, targets)) in enumerate(
        islice(zip(plain, mixed, strict=True), 8)
    ):
        made = {}
        for name in ("mixup", "cutmix"):
            draw = Draw(generator(recipe.seed, 0, step + 1, 3, 0))
            made[name] = MIXES[name](augmented, torch.eye(10)[labels], draw)
        found = [n for n, (i, t) in made.items() if torch.equal(images, i) and t.equal(targets)]
        assert len(found) == 1
        met.update(found)
    assert met == {"mixup", "cutmix"}


def test_a_batch_holds_copies_of_its_images_each_with_draws_of_its_own(digits, small):
    split, recipe = digits.train, replace(small, mix=(), augment_repeats=3, batch_size=40)
    images, labels = next(batches(split, StepCounts(recipe, len(split))))
    indices = epoch_order(split, small.seed, 0)[:40]
    assert torch.equal(labels, split.labels[indices.repeat_interleave(3)])
    alike = [len(three.flatten(1).unique(dim=0)) for three in images.split(3)]
    assert sum(count == 3 for count in alike) > 30
