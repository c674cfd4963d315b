"""Split: images, labels and names in memory, with a fingerprint; Dataset: its splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanres.data.arrays import CHANNELS, images_of, in_channels, labels_of, room_for, shared_room
from leanres.errors import UserError, printable
from leanres.registry import check_class_names

TEST_SHARE = 0.2  # of the images, where a source has no test split


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images as stored: uint8 (N, C, H, W), labels int64 (N,), one name per class.

    Without images it stands for the train split of a data set that is for testing alone.
    C is one of CHANNELS. `files` names each image, as "cat/0.png", or is empty. Raises UserError if
    shapes, types or labels do not fit each other.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, self.images, len(self.classes))
        check_class_names(self.classes)
        if len(self.files) not in (0, len(self.images)):
            raise UserError(f"{len(self.files)} file names for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """C: 1 for grey images, 3 for RGB, 4 for RGBA."""
        return self.images.shape[1]

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        """One 32-byte BLAKE2b digest per image, of its pixels alone. (N, 32) uint8."""
        return digests_of(self.images.cpu().numpy())

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of every pixel, label and class name, in any order.

        Scheme: each image gives a record of 40 bytes, BLAKE2b-256 of its pixels (C, H, W) and then
        its label as little-endian int64; sha256 runs over the line "C H W", the class names (one
        a line) and the records in sorted order. BLAKE2b for the rows because it takes 0.3 s for
        50,000 CIFAR images on one core, where sha256 took 0.5 s.
        """
        labels = self.labels.cpu().numpy().astype("<i8").view(np.uint8).reshape(-1, 8)
        records = np.concatenate([self.digests, labels], axis=1).view("V40").ravel()
        shape = " ".join(str(side) for side in self.images.shape[1:])
        head = "\n".join((shape, *self.classes, "")).encode()
        return hashlib.sha256(head + b"".join(sorted(records.tolist()))).hexdigest()

    def file(self, index: int, split: str) -> str:
        """The name of an image; "test[17]" where it has none and the split is called test."""
        return self.files[index] if self.files else f"{split}[{index}]"

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on `device`."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        if "digests" in self.__dict__:
            moved.__dict__["digests"] = self.digests
        return moved

    def _images(self, chosen: Tensor) -> Tensor:
        """The images at `chosen` (M,), copied; many of them into a file that processes share."""
        if self.images.device.type != "cpu":
            return self.images[chosen]
        known = self.__dict__.get("digests")
        shape = (len(chosen), *self.images.shape[1:])

        def copy(room: NDArray[np.uint8]) -> None:
            torch.index_select(self.images, 0, chosen, out=torch.from_numpy(room))

        if known is None:
            copy(room := room_for(shape))
            return torch.from_numpy(room)
        own = known[chosen.numpy()]
        name = hashlib.blake2b(own.tobytes(), digest_size=16, key=str(shape).encode()).hexdigest()
        shared = shared_room(
            f"{name}.images", shape, copy, lambda room: np.array_equal(digests_of(room), own)
        )
        return torch.from_numpy(shared)

    def subset(self, indices: Tensor | Sequence[int]) -> Split:
        """A new split of the images at `indices` (M,), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        files = tuple(self.files[i] for i in chosen.tolist()) if self.files else ()
        part = Split(self._images(chosen), self.labels[chosen], self.classes, files)
        if "digests" in self.__dict__:  # computed once: 0.3 s for the images of CIFAR-10
            part.__dict__["digests"] = self.digests[chosen.cpu().numpy()]
        return part


@dataclass(frozen=True)
class Dataset:
    """The splits that a source has, and notes for the user about them.

    `train` has no images where a set is for testing alone.

    `grows`: images may be added later, so each image's own pixels decide whether it is held out
    (`content_split`). Otherwise the set is complete, and held-out counts are exact.
    """

    name: str
    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()  # one line each: "3 hidden files skipped"
    source: str = ""  # where the images came from, in words
    grows: bool = False
    whites: Mapping[str, float] = field(default_factory=dict)  # of grey values, as Preprocess has

    def __post_init__(self) -> None:
        for name, split in self.splits.items() if self.train else ():
            if split.classes == self.train.classes and (lost := _missing(self.train, split)):
                raise UserError(
                    f"class {lost[0]!r} has {name} images and no train images: no network can learn"
                    " it; add some, or remove the class"
                )

    @classmethod
    def of(
        cls,
        name: str,
        splits: Mapping[str, Split],
        notes: Sequence[str] = (),
        source: str = "",
        whites: Mapping[str, float] | None = None,
    ) -> Dataset:
        """A data set that may grow, of the splits given: train, val, test, or "all"; or test alone.

        A fifth of "all" is held out as test by `content_split`, and a note says so. UserError
        where that is impossible, for a single class, and where splits differ in classes or size.
        """
        for split in splits.values():
            if len(split.classes) == 1:
                raise UserError(f"one class, {split.classes[0]!r}: give at least two classes")
        if "all" in splits:
            train, test = content_split(splits["all"], TEST_SHARE, "test")
            notes = (*notes, _held_out_note(len(test), len(splits["all"])))
            splits = {**splits, "train": train, "test": test}
            del splits["all"]
        first = splits.get("train") or next(iter(splits.values())).subset([])
        for other, split in splits.items():
            if (split.classes, split.images.shape[1:]) != (first.classes, first.images.shape[1:]):
                raise UserError(
                    f"{other} and train differ in class names, size or channels: give the same"
                )
        if not first and "test" not in splits:
            raise UserError(f"there are {', '.join(splits)} images alone: add train or test images")
        notes = [*notes, *_lacking_notes(splits)]
        parts = (first, splits.get("val"), splits.get("test"))
        return cls(name, *parts, tuple(notes), source, True, whites or {})

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        test: tuple[Any, Any] | None = None,
        val: tuple[Any, Any] | None = None,
        classes: Sequence[str] | None = None,
        files: Sequence[str] = (),
        size: int | None = None,
        name: str = "arrays",
    ) -> Dataset:
        """A data set of arrays in memory: x, y are train, or everything where `test` is not given.

        x: numpy or PyTorch, (N, H, W, C), (N, C, H, W) or (N, H, W), uint8 or floats from 0 to 1.
        y: (N,) whole numbers or names. `classes` names the numbers; `files` the images of x.
        `size` crops and resizes to squares. UserError for arrays that do not fit.
        """
        given = {"train" if test else "all": (x, y), "val": val, "test": test}
        pairs = {part: pair for part, pair in given.items() if pair is not None}
        splits = splits_of(pairs, classes, size, channels=None)
        first = next(iter(splits))
        splits[first] = replace(splits[first], files=tuple(map(printable, files)))
        return cls.of(name, splits, source="arrays in memory")

    def check_trainable(self) -> None:
        """UserError for a data set that is for testing alone."""
        if not self.train:
            raise UserError(
                f"{self.name} has test images alone: train on other data, and measure it on these"
                " with leanres evaluate RUN --data"
            )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that it has, by name: train, val, test."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split}

    def in_channels(self, channels: int | None) -> Dataset:
        """The same with grey (1), RGB (3) or RGBA (4) images; a note says where that changes them.

        None keeps them as they are.
        """
        came = self.train.channels
        if channels in (None, came):
            return self
        parts = {
            name: replace(split, images=in_channels(split.images, channels))
            for name, split in self.splits.items()
        }
        note = f"images are converted from {CHANNELS[came]} to {CHANNELS[channels]}"
        return replace(self, **parts, notes=(*self.notes, note))  # type: ignore[arg-type]

    def with_val(self, val: float) -> Dataset:
        """The same with images held out of train as val, unless it has a val split or `val` is 0.

        val: a share below 1, or a number of images. UserError where train is too small for it.
        """
        if not val or self.val is not None or not self.train:
            return self
        own = self.train
        count = int(val) if val >= 1 else max(round(val * len(own)), len(own.classes))
        try:
            parts = content_split(own, val) if self.grows else stratified_split(own, count)
        except UserError as error:
            raise UserError(f"val = {val:g}: {error}") from None
        return replace(self, train=parts[0], val=parts[1])


def digests_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One 32-byte BLAKE2b digest per image (N, ...), of its pixels alone. (N, 32)."""
    rows = images.reshape(len(images), math.prod(images.shape[1:]))
    joined = b"".join(hashlib.blake2b(row.data, digest_size=32).digest() for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(len(images), 32)


def _missing(split: Split, other: Split) -> list[str]:
    """The classes that have images in `other` and none in `split`."""
    counts = (torch.bincount(s.labels, minlength=len(s.classes)) for s in (split, other))
    own, others = (count.tolist() for count in counts)
    return [name for name, n, m in zip(split.classes, own, others, strict=True) if m and not n]


def _lacking_notes(splits: Mapping[str, Split]) -> list[str]:
    """Which classes of train have no image in val or test: they are not measured there."""
    lacking = {n: _missing(s, splits["train"]) for n, s in splits.items() if "train" in splits}
    return [
        f"{name} has no image of {len(lost)} class{'es' * (len(lost) > 1)} of train:"
        f" {', '.join(lost[:5])}{', ...' * (len(lost) > 5)}"
        for name, lost in lacking.items()
        if lost
    ]


def _held_out_note(count: int, total: int) -> str:
    """How many images are held out as test, and why they are more than usual where they are."""
    why = ""
    if count > 1.25 * TEST_SHARE * total:
        why = " (more than a fifth: pixels decide, and each class gives one at least)"
    return f"no test split: {count:,} of {total:,} images are held out{why}"


def splits_of(
    pairs: Mapping[str, tuple[Any, Any]],
    classes: Sequence[str] | None = None,
    size: int | None = None,
    channels: int | None = 3,
) -> dict[str, Split]:
    """Splits of arrays: name -> (images, labels), as `images_of` and `labels_of` take them.

    Images are converted to `channels`; None keeps their own.
    """
    found = {part: images_of(pair[0], f"{part} images", size) for part, pair in pairs.items()}
    if channels is not None:
        found = {part: in_channels(images, channels) for part, images in found.items()}
    labels, names = labels_of([pair[1] for pair in pairs.values()], classes)
    return {
        part: Split(images, numbers, names)
        for (part, images), numbers in zip(found.items(), labels, strict=True)
    }


def _check_images(images: Tensor) -> None:
    """uint8 (N, C, H, W), C one of CHANNELS, contiguous, H and W not 0."""
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.ndim != 4 or shape[1] not in CHANNELS:
        fits = "uint8 of (N, C, H, W), C 1, 3 or 4"
        raise UserError(f"images are {images.dtype} of shape {shape}; give {fits}")
    if 0 in shape[1:]:
        raise UserError(f"images of shape {shape} are empty; give at least one pixel")
    if not images.is_contiguous():
        raise UserError("images are not contiguous in memory; pass images.contiguous()")


def _check_labels(labels: Tensor, images: Tensor, num_classes: int) -> None:
    """int64 (N,), on the device of the images, each from 0 to num_classes - 1."""
    shape = tuple(labels.shape)
    if labels.dtype != torch.int64 or shape != (len(images),):
        came, fits = f"{labels.dtype} of shape {shape}", f"int64 of shape ({len(images)},)"
        raise UserError(f"labels are {came}; give {fits}, one per image")
    if labels.device != images.device:
        raise UserError(f"images are on {images.device}, labels on {labels.device}; use one device")
    if not len(labels):
        return
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= num_classes:
        raise UserError(
            f"labels run from {low} to {high}, but {num_classes} class names allow 0 to "
            f"{num_classes - 1}; give one name per class"
        )


def stratified_split(split: Split, num_val: int = 5000, seed: int = 0) -> tuple[Split, Split]:
    """Hold out `num_val` images for validation; every class keeps its share. -> (train, val).

    The choice depends on the pixels, `num_val` and `seed`, not on the order of the images: the
    same CIFAR-10 read from another file format gives the same validation set. Both parts keep
    the order of the images. UserError if a class would have no image in one of the parts.
    """
    labels = split.labels.cpu().numpy()
    counts = np.bincount(labels, minlength=len(split.classes))
    quotas = _quotas(counts.tolist(), num_val, split.classes)
    order = np.argsort(split.digests.copy().view("V32").ravel(), kind="stable")
    generator = torch.Generator().manual_seed(seed)
    shuffled = order[torch.randperm(len(split), generator=generator).numpy()]
    by_class = [shuffled[labels[shuffled] == label] for label in range(len(quotas))]
    held_out = np.zeros(len(split), bool)
    held_out[np.concatenate([own[:n] for own, n in zip(by_class, quotas, strict=True)])] = True
    return parted(split, held_out)


def parted(split: Split, held_out: NDArray[np.bool_]) -> tuple[Split, Split]:
    """The images that are not held out, and those that are."""
    others, chosen = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return split.subset(torch.from_numpy(others)), split.subset(torch.from_numpy(chosen))


def content_split(split: Split, part: float, salt: str = "val") -> tuple[Split, Split]:
    """Hold out a part of the images; the pixels of each decide. -> (the others, held out).

    part: a share below 1, or a number of images. A hash of an image's pixels and `salt` gives it a
    number from 0 to 1; those below the share are held out. So further images move none of these,
    and equal images stay together. The share is met on average: of 100 images, 20 +- 4 for 0.2. At
    least one image of each class is on either side. A number of images is met in every class (but
    for equal images), and may move some images when others come. UserError where a class has fewer
    than two different images.
    """
    labels, draws = split.labels.cpu().numpy(), draws_of(split, salt)
    counts = np.bincount(labels, minlength=len(split.classes))
    quotas = _quotas(counts.tolist(), int(part), split.classes) if part >= 1 else None
    chosen = []
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in enumerate(by_class):
        own = np.unique(draws[members])  # one draw for equal images
        if len(own) < 2:
            name = printable(split.classes[label])
            raise UserError(f"class {name!r} has fewer than 2 different images: too few to split")
        number = int((own < part).sum()) if quotas is None else quotas[label]
        chosen.append(own[: min(max(number, 1), len(own) - 1)])
    held_out = np.isin(draws, np.concatenate(chosen))
    return parted(split, held_out)


def draws_of(split: Split, salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, a hash of its digest and the salt. (N,)."""
    key = salt.encode()
    hashes = (hashlib.blake2b(d.tobytes(), digest_size=8, key=key) for d in split.digests)
    return np.frombuffer(b"".join(h.digest() for h in hashes), "<u8") / 2.0**64


def _quotas(counts: list[int], num_val: int, classes: tuple[str, ...]) -> list[int]:
    """Validation images of each class: its share, at least 1, and at least 1 left for training."""
    few = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if few:
        raise UserError(f"class {few[0]!r} has fewer than 2 images: too few to split")
    total, lowest = sum(counts), len(counts)
    if not lowest <= num_val <= total - lowest:
        fits = f"between {lowest} and {total - lowest}, so that no class is empty"
        came = f"{num_val} of {total} images in {lowest} classes"
        raise UserError(f"cannot hold out {came}; give {fits}, or a share such as 0.1")
    quotas = [min(max(count * num_val // total, 1), count - 1) for count in counts]
    while sum(quotas) != num_val:
        step = 1 if sum(quotas) < num_val else -1
        room = [i for i, (c, q) in enumerate(zip(counts, quotas, strict=True)) if 1 <= q + step < c]
        # The class that is farthest below (or above) its exact share is adjusted first.
        gaps = {i: step * (counts[i] * num_val - quotas[i] * total) for i in room}
        quotas[max(room, key=lambda i: gaps[i])] += step
    return quotas


def channel_stats(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel, of pixels in [0, 1]. -> (C,), (C,).

    Pixels are counted by value and summed as integers, so the result is exact and does not depend
    on order, device or precision.
    """
    counts = torch.zeros(split.channels, 256, dtype=torch.int64)
    for chunk in torch.split(split.images, 1000):
        for channel in range(split.channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    n = split.images[:, 0].numel()
    totals = [sum(v * c for v, c in enumerate(row)) for row in counts.tolist()]
    squares = [sum(v * v * c for v, c in enumerate(row)) for row in counts.tolist()]
    variances = [(n * s - t * t) / (n * 255) ** 2 for t, s in zip(totals, squares, strict=True)]
    return tuple(t / (n * 255) for t in totals), tuple(v**0.5 for v in variances)
