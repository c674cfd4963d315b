"""Folds: each training image is held out exactly once, as its pixels decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from leanres.data.split import Dataset, Split, draws_of, parted
from leanres.errors import UserError, printable


def training_images(dataset: Dataset) -> Split:
    """Train and val as one split, each image with a name: its file, or "train[17]"."""
    parts = {name: split for name, split in dataset.splits.items() if name != "test"}
    images = torch.cat([split.images for split in parts.values()])
    labels = torch.cat([split.labels for split in parts.values()])
    files = tuple(split.file(i, name) for name, split in parts.items() for i in range(len(split)))
    joined = Split(images, labels, dataset.train.classes, files)
    joined.__dict__["digests"] = np.concatenate([split.digests for split in parts.values()])
    return joined


def fold_numbers(images: Split, folds: int) -> NDArray[np.int64]:
    """The fold of each image, from 1 to `folds`. (N,).

    By the rule of `content_split`: a hash of the pixels decides, so equal images are in one fold,
    further images move none of these, and sizes are equal on average. The images of a class are in
    two folds or more. UserError where a class has fewer than two different images, or a fold none.
    """
    if folds < 2:
        raise UserError(f"{folds} folds: give 2 or more")
    draws, labels = draws_of(images, "folds"), images.labels.cpu().numpy()
    numbers = np.minimum((draws * folds).astype(np.int64), folds - 1) + 1
    for label, name in enumerate(images.classes):
        own = np.unique(draws[labels == label])
        if len(own) < 2:
            came = f"class {printable(name)!r} has fewer than 2 different images"
            raise UserError(f"{came}: too few to hold one out")
        if len(np.unique(numbers[labels == label])) == 1:
            numbers[draws == own[0]] = numbers[labels == label][0] % folds + 1
    if empty := sorted({*range(1, folds + 1)} - {*numbers.tolist()}):
        raise UserError(f"fold {empty[0]} of {folds} has no images: give fewer folds")
    return numbers


def in_fold(dataset: Dataset, fold: int, folds: int) -> Dataset:
    """The training images outside of a fold as train, those in it as test.

    The data set's own test images are left out.
    """
    images = training_images(dataset)
    train, held_out = parted(images, fold_numbers(images, folds) == fold)
    return replace(dataset, train=train, val=None, test=held_out)
