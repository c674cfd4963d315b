"""A user's folder of images: `root/<class>/*`, or `root/{train,val,test}/<class>/*`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leanres.data.image_files import image_files, natural_key, read_image_or_reason
from leanres.data.sources.cache import cached
from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset, Split
from leanres.errors import UserError, printable

LAYOUT = "a folder with one subfolder per class"
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder, before any is opened.

    `files`: split ("all" if the folder has no splits) -> class -> image files. `skipped` counts
    everything else by kind ("hidden file{s}").
    """

    root: Path
    files: dict[str, dict[str, list[Path]]]
    skipped: Counter[str] = field(default_factory=Counter)


def load_folder(options: LoadOptions) -> Dataset:
    """The images of `options.path`, each resized to `options.size`, from the cache if it has them.

    UserError for a folder that is missing or has no classes to learn.
    """
    if options.path is None:
        raise UserError(f"a folder of images needs its path; give {LAYOUT}")
    listing = list_folder(options.path)
    paths = (path for classes in listing.files.values() for own in classes.values() for path in own)
    settings = [options.size, options.strict, sorted(listing.skipped.items())]
    decode = partial(read_folder, listing, options.size, strict=options.strict)
    return cached("folder", options.path, paths, settings, options.cache, decode)


def list_folder(root: Path) -> FolderListing:
    """List the images under `root` by split and class, in natural order (class2 before class10).

    UserError for a folder without class folders, with only one class, with an empty class, or
    whose splits have different classes.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give {LAYOUT}")
    skipped: Counter[str] = Counter()
    splits = _split_folders(root)
    if splits:
        skipped["folder{s} beside the splits"] += len(_subfolders(root)) - len(splits)
    files = {name: _class_files(folder, skipped) for name, folder in splits.items()}
    files = files or {"all": _class_files(root, skipped)}
    _check_same_classes(files, root)
    return FolderListing(root, files, skipped)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split name -> its folder; empty if the folders hold images themselves: they are classes."""
    named = {
        _SPLIT_NAMES[p.name.lower()]: p for p in _subfolders(root) if p.name.lower() in _SPLIT_NAMES
    }
    found = {name: named[name] for name in dict.fromkeys(_SPLIT_NAMES.values()) if name in named}
    if not any(_subfolders(folder) for folder in found.values()):
        return {}
    if "train" not in found:
        raise UserError(f"{root} has {', '.join(found)} but no train folder; add train/<class>/*")
    return found


def _subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, in natural order."""
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(inside, key=lambda path: natural_key(path.name))


def _class_files(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Class name -> image files of one split."""
    classes = {path.name: image_files(path, skipped) for path in _subfolders(folder)}
    others = [path.name for path in folder.iterdir() if not path.is_dir()]
    num_hidden = sum(name.startswith(".") for name in others)
    skipped["hidden file{s}"] += num_hidden
    skipped["file{s} beside the classes"] += len(others) - num_hidden
    if not classes:
        raise UserError(f"{folder} has no class folders; give {LAYOUT}")
    if len(classes) == 1:
        only = next(iter(classes))
        raise UserError(f"{folder} has one class folder, {only!r}; give at least two classes")
    if empty := [printable(folder / name) for name, files in classes.items() if not files]:
        raise UserError(f"class folder {empty[0]} has no images; fill or remove it")
    return classes


def _check_same_classes(files: dict[str, dict[str, list[Path]]], root: Path) -> None:
    first, *others = files
    for other in others:
        if differing := sorted(files[first].keys() ^ files[other].keys()):
            names = ", ".join(repr(name) for name in differing[:5])
            raise UserError(
                f"{root}: {first} and {other} do not have the same classes: only one of them has "
                f"{names}; give each split a folder for every class"
            )


def read_folder(listing: FolderListing, size: int = 32, *, strict: bool = False) -> Dataset:
    """Decode every listed image to (3, size, size). -> Dataset with notes on what was skipped.

    An image that cannot be read, or has more than 25 megapixels, is skipped, named and counted;
    with `strict` the first one is a UserError. Without split folders, the pixels of each image
    decide whether it is a test image (`data.split.content_split`).
    """
    bad: list[str] = []
    splits = {name: _read_split(listing, name, size, strict, bad) for name in listing.files}
    notes = [f"classes in this order: {', '.join(next(iter(splits.values())).classes)}"]
    counts = sorted((what, n) for what, n in listing.skipped.items() if n)
    notes += [f"{n} {what.format(s='s' if n > 1 else '')} skipped" for what, n in counts]
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        plural = "s" * (len(bad) > 1)
        notes.append(f"{len(bad)} unreadable image{plural} skipped: {'; '.join(bad[:5])}{more}")
    try:
        return Dataset.of("folder", splits, notes, str(listing.root))
    except UserError as error:
        raise UserError(f"{printable(listing.root)}: {error}") from None


def _read_split(
    listing: FolderListing, name: str, size: int, strict: bool, bad: list[str]
) -> Split:
    """Decode one split; `bad` receives the name of each unreadable image, and the reason."""
    classes = listing.files[name]
    paths = [path for own in classes.values() for path in own]
    numbers = [label for label, own in enumerate(classes.values()) for _ in own]
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    read: list[str] = []
    for path, label, outcome in zip(paths, numbers, read_image_or_reason(paths, size), strict=True):
        if not isinstance(outcome, str):
            images.append(outcome)
            labels.append(label)
            read.append(printable(path.relative_to(listing.root)))
        elif strict:
            raise UserError(f"{printable(path)} cannot be read: {outcome}; fix or remove it")
        else:
            bad.append(f"{printable(path.relative_to(listing.root))} ({outcome})")
    for label, own in enumerate(classes):
        if label not in labels:
            raise UserError(f"class {own!r} of {listing.root}: none of its images can be read")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    names = tuple(printable(name) for name in classes)
    return Split(pixels, torch.tensor(labels), names, tuple(read))
