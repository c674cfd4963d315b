"""Folds: every training image is held out once, and growth moves none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from leanres.data.folds import fold_numbers, in_fold, training_images
from leanres.data.split import Dataset, Split
from leanres.errors import UserError


@pytest.fixture(scope="module")
def data(digits: Dataset) -> Dataset:
    """1,000 digits to train on and 437 val images."""
    order = range(len(digits.train))
    train, val = digits.train.subset(order[:1000]), digits.train.subset(order[1000:])
    return replace(digits, train=train, val=val)


def by_hand(pixels: torch.Tensor, folds: int) -> int:
    """The fold that an image's pixels give."""
    digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=32).digest()
    draw = hashlib.blake2b(digest, digest_size=8, key=b"folds").digest()
    return int(int.from_bytes(draw, "little") / 2**64 * folds) + 1


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_each_training_image_is_held_out_once_by_its_pixels(data, folds):
    images = training_images(data)
    numbers = fold_numbers(images, folds)
    assert numbers.tolist() == [by_hand(image, folds) for image in images.images]
    held_out = []
    for fold in range(1, folds + 1):
        part = in_fold(data, fold, folds)
        assert part.val is None
        assert len(part.train) + len(part.test) == 1437
        assert not {*part.train.files} & {*part.test.files}
        assert len(part.train.labels.unique()) == 10
        held_out += part.test.files
    assert sorted(held_out) == sorted(images.files)
    sizes = np.bincount(numbers)[1:]
    expected = 1437 / folds
    assert np.abs(sizes - expected).max() < 4 * (expected * (1 - 1 / folds)) ** 0.5


def test_images_are_named_by_file_or_by_split_and_position(data):
    images = training_images(data)
    assert images.files[0] == "train[0]"
    assert images.files[1000] == "val[0]"
    assert torch.equal(images.images[1000], data.val.images[0])
    again = Split(images.images, images.labels, images.classes)
    assert (images.digests == again.digests).all()
    named = replace(data, val=None, train=replace(data.train, files=("a",) * 1000))
    assert set(training_images(named).files) == {"a"}


def test_the_test_images_of_the_data_set_are_in_no_fold(data):
    keys = {digest.tobytes() for digest in data.test.digests}
    part = in_fold(data, 1, 2)
    here = {digest.tobytes() for split in part.splits.values() for digest in split.digests}
    assert not keys & here


def test_further_images_and_another_order_move_none(data):
    images = training_images(data)
    before = dict(zip(images.files, fold_numbers(images, 5).tolist(), strict=True))
    some = images.subset(torch.randperm(1437, generator=torch.Generator().manual_seed(1))[:700])
    now = fold_numbers(some, 5).tolist()
    assert now == [before[file] for file in some.files]


def test_equal_images_are_in_one_fold_whatever_their_labels(data):
    train = data.train
    twice = Split(
        torch.cat([train.images, train.images]),
        torch.cat([train.labels, (train.labels + 1) % 10]),
        train.classes,
    )
    numbers = fold_numbers(twice, 7)
    assert (numbers[:1000] == numbers[1000:]).all()


def small(per_class: int, classes: int = 2) -> Split:
    rng = torch.Generator().manual_seed(0)
    shape = (per_class * classes, 3, 4, 4)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return Split(images, labels, tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize("per_class", [2, 3])
def test_no_training_lacks_a_class_of_few_images(per_class):
    images = small(per_class, 10)
    moved = 0
    for folds in (2, 3):
        numbers = fold_numbers(images, folds)
        for label in range(10):
            assert len({*numbers[images.labels == label]}) > 1
        moved += sum(numbers != [by_hand(image, folds) for image in images.images])
    assert moved  # else the hash alone had parted them, and nothing was tried


def test_what_cannot_be_parted_is_one_line():
    alone = Split(small(1).images.repeat(2, 1, 1, 1), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(UserError, match="class 'a' has fewer than 2 different images"):
        fold_numbers(alone, 2)
    with pytest.raises(UserError, match=r"fold \d+ of 40 has no images: give fewer folds"):
        fold_numbers(small(5), 40)
    with pytest.raises(UserError, match="1 folds: give 2 or more"):
        fold_numbers(small(5), 1)
