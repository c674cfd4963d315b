"""images.parquet: the images that a run was trained and measured on, so that none leaks later.

A folder may grow after a training. An image is recognised by its pixels, wherever it lies.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from leanres.data.split import Dataset, Split
from leanres.errors import UserError, first_line
from leanres.io import MIB, read_parquet
from leanres.runs.layout import IMAGES, fingerprints

MAX_BYTES = 1024 * MIB
SPLITS = ("train", "val", "test")

Keys = NDArray[np.uint64]  # (N,): the first 8 bytes of each image's digest


@dataclass(frozen=True)
class RunImages:
    """The images of a run, train first, as they came: a key and a position in SPLITS each."""

    keys: Keys
    split: NDArray[np.int8]

    def of(self, *names: str) -> Keys:
        """The keys of the images of these splits."""
        return self.keys[np.isin(self.split, [SPLITS.index(name) for name in names])]


def images_table(dataset: Dataset, val: Split | None) -> bytes:
    """A parquet table: key, split, and file where images have names.

    val: what was held out of the dataset's train split, or is its own.
    """
    names = np.concatenate([[name] * len(split) for name, split in dataset.splits.items()])
    keys = np.concatenate([keys_of(split) for split in dataset.splits.values()])
    if val is not None:
        names[(names == "train") & np.isin(keys, keys_of(val))] = "val"
    columns = {"key": pa.array(keys), "split": pa.array(names).dictionary_encode()}
    if all(split.files for split in dataset.splits.values()):
        files = [file for split in dataset.splits.values() for file in split.files]
        columns["file"] = pa.array(files)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def keys_of(split: Split) -> Keys:
    """The key of each image, (N,) uint64."""
    return split.digests[:, :8].copy().view("<u8").ravel()


def read_images(folder: Path) -> RunImages:
    """The images of the run in `folder`. UserError where its table is missing or damaged."""
    try:
        table = read_parquet(folder / IMAGES, MAX_BYTES, ["key", "split"])
        keys = table["key"].to_numpy()
        numbers = [SPLITS.index(name) for name in table["split"].to_pylist()]
        if keys.dtype != np.uint64:
            raise ValueError(f"its keys are {keys.dtype}")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{folder / IMAGES} cannot be read: {first_line(error)}") from None
    return RunImages(keys, np.array(numbers, np.int8))


def is_same(info: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether a dataset's images, labels and classes are those that run.json names."""
    now, then = fingerprints(dataset), info["data"]["fingerprints"]
    return all(now[name] == then[name] for name in SPLITS)


def check_whites(info: Mapping[str, Any], dataset: Dataset) -> None:
    """UserError for data whose grey values of more than 8 bits were scaled in another way.

    Its images would look like others than those that the run was trained on.
    """
    then = info["preprocess"].get("whites", {})
    if any(dataset.whites.get(kind, white) != white for kind, white in then.items()):
        raise UserError(
            f"grey values are scaled to the white {dict(dataset.whites)}, the network's is {then}:"
            f" load the data with load_data(..., whites={then})"
        )


def check_data(folder: Path, info: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether the images are in the same order as when the run in `folder` was started.

    UserError where they are not the images that run.json names.
    """
    if not is_same(info, dataset):
        raise UserError(
            f"{folder} was trained on other data ({difference(folder, dataset)}): give the same"
            " with --data, or another folder"
        )
    return bool(fingerprints(dataset)["order"] == info["data"]["fingerprints"].get("order"))


def difference(folder: Path, dataset: Dataset) -> str:
    """How many images of the run in `folder` a dataset lacks, and how many are new, in words."""
    try:
        then = Counter(read_images(folder).keys.tolist())
    except UserError:
        return "other images, labels or classes"
    now = Counter(key for split in dataset.splits.values() for key in keys_of(split).tolist())
    missing, new = (then - now).total(), (now - then).total()
    if not missing and not new:
        return "the same images, but other labels, classes or splits"
    return f"{missing:,} of its {then.total():,} images are missing, {new:,} are new"


def as_trained(
    folder: Path, info: Mapping[str, Any], dataset: Dataset
) -> tuple[Dataset, list[str]]:
    """The dataset as it was when the run began, and a note on images added since, left out here.

    Unchanged where it is the same, and where images of the run are gone: then it is another one.
    """
    check_whites(info, dataset)
    if is_same(info, dataset) or not (folder / IMAGES).exists():
        return dataset, []
    known, pool = read_images(folder), _joined(dataset, tuple(info["preprocess"]["classes"]))
    places: dict[int, deque[int]] = defaultdict(deque)
    for place, key in enumerate(keys_of(pool).tolist() if pool else ()):
        places[key].append(place)  # equal images have several
    try:
        found = torch.tensor([places[key].popleft() for key in known.keys.tolist()])
    except IndexError:
        return dataset, []
    assert pool is not None  # for mypy: without a pool nothing is found
    split = known.split.copy()
    if info["data"]["fingerprints"]["val"] is None:  # its val was held out of train
        split[split == SPLITS.index("val")] = SPLITS.index("train")
    places_of = {name: found[split == number] for number, name in enumerate(SPLITS)}
    parts = {name: pool.subset(own) if len(own) else None for name, own in places_of.items()}
    added = sum(map(len, dataset.splits.values())) - len(found)
    notes = [f"{added:,} images came since the run began: left out"] if added else []
    whites = info["preprocess"].get("whites", {})
    then = replace(dataset, **parts, whites=whites)  # type: ignore[arg-type]  # train is never empty
    return then, notes


def _joined(dataset: Dataset, classes: tuple[str, ...]) -> Split | None:
    """All images of the dataset that are of these classes; None where a class is missing."""
    if not set(classes) <= set(dataset.train.classes):
        return None
    splits = dataset.splits.values()
    names = dataset.train.classes
    numbers = torch.tensor([classes.index(name) if name in classes else -1 for name in names])
    labels = numbers[torch.cat([split.labels for split in splits])]
    images = torch.cat([split.images for split in splits])
    has_files = all(split.files for split in splits)
    files = tuple(file for split in splits for file in split.files) if has_files else ()
    every = Split(images, labels.clamp(min=0), classes, files)
    return every.subset(torch.nonzero(labels >= 0)[:, 0])


def unseen(folder: Path, info: Mapping[str, Any], dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The dataset with val and test images that the run was not trained on, and notes.

    On the run's own data, its own splits. On other data, as a folder that has grown, images that
    the run was trained on (or chosen by, in test) are left out and counted. UserError where none is
    left.
    """
    check_whites(info, dataset)
    if is_same(info, dataset):
        return dataset.with_val(info["recipe"]["val"]), []
    parted = dataset
    with contextlib.suppress(UserError):  # other data may be too small for the run's val
        parted = dataset.with_val(info["recipe"]["val"])
    known = read_images(folder)
    every = np.concatenate([keys_of(split) for split in dataset.splits.values()])
    here = int(np.isin(known.keys, every).sum())
    came = len(every) - int(np.isin(every, known.keys).sum())
    notes = [
        f"not the images that the run began with: {here:,} of those {len(known.keys):,} are here,"
        f" and {came:,} others"
    ]
    for name in ("val", "test"):
        if split := parted.splits.get(name):
            kept, told = _without_seen(split, name, known, "the run")
            parted = replace(parted, **{name: kept})  # type: ignore[arg-type]
            notes += told
    return parted, notes


def unseen_too(split: Split, name: str, folder: Path) -> tuple[Split, list[str]]:
    """The images of a split that another run was not trained on either, and a note on the others.

    Its own val or test images are all kept. UserError where none is left.
    """
    known = read_images(folder)
    if name == "train" or np.isin(keys_of(split), known.of(name)).all():
        return split, []
    return _without_seen(split, name, known, str(folder))


def _without_seen(split: Split, name: str, known: RunImages, run: str) -> tuple[Split, list[str]]:
    """The images that a run was not trained on (or chosen by, in test), and a note."""
    seen = known.of("train") if name == "val" else known.of("train", "val")
    new = ~np.isin(keys_of(split), seen)
    if new.all():
        return split, []
    if not new.any():
        raise UserError(f"{run} was trained on all {len(new):,} {name} images: give others")
    out = len(new) - int(new.sum())
    note = f"{out:,} of {len(new):,} {name} images left out: {run} was trained on them"
    return split.subset(torch.from_numpy(np.flatnonzero(new))), [note]
