"""A user's folder of images: `root/<class>/*`, or `root/{train,val,test}/<class>/*`."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from leanres.data.split import Dataset, Split, stratified_split
from leanres.errors import UserError, first_line

MAX_PIXELS = 25_000_000  # refused by the header, before any pixel is decoded
TEST_SHARE = 0.2  # of the images, where the folder itself has no test split
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# These need another program to decode (EPS runs Ghostscript) or are stubs that never decode.
_NO_FORMATS = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}


@dataclass(frozen=True)
class Tree:
    """What a folder holds, before any image is opened."""

    root: Path
    files: dict[str, dict[str, list[Path]]]  # split ("all" where there are none) -> class -> files
    skipped: Counter[str] = field(default_factory=Counter)  # "hidden file{s}" -> how many

    def paths(self) -> list[Path]:
        """Every image file, in the order in which they are read."""
        return [path for own in self.files.values() for paths in own.values() for path in paths]


@dataclass(frozen=True)
class Unreadable:
    """An image file that cannot be read, and one line why."""

    path: Path
    reason: str


def scan(root: Path) -> Tree:
    """List the images under `root` by split and class, in natural order (class2 before class10).

    UserError for a folder without class folders, with one class, with an empty class, or whose
    splits have different classes.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give one that holds a folder per class")
    skipped: Counter[str] = Counter()
    splits = _split_folders(root)
    if splits:
        skipped["folder{s} beside the splits"] += len(_folders(root)) - len(splits)
    tree = {name: _classes(folder, skipped) for name, folder in splits.items()}
    files = tree or {"all": _classes(root, skipped)}
    _check_same_classes(files, root)
    return Tree(root, files, skipped)


def _split_folders(root: Path) -> dict[str, Path]:
    """train, val and test folders; none where `train` holds images itself: then it is a class."""
    named = {_SPLITS[p.name.lower()]: p for p in _folders(root) if p.name.lower() in _SPLITS}
    found = {name: named[name] for name in dict.fromkeys(_SPLITS.values()) if name in named}
    if not any(_folders(folder) for folder in found.values()):
        return {}
    if "train" not in found:
        raise UserError(f"{root} has {', '.join(found)} but no train folder; add train/<class>/*")
    return found


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, in natural order."""
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(inside, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that orders digits by value: class2 before class10, case aside."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name.casefold())
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts], name


def _classes(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Class name -> image files of one split."""
    classes = {path.name: _images(path, skipped) for path in _folders(folder)}
    beside = [path.name for path in folder.iterdir() if not path.is_dir()]
    hidden = sum(name.startswith(".") for name in beside)
    skipped["hidden file{s}"] += hidden
    skipped["file{s} beside the classes"] += len(beside) - hidden
    if not classes:
        raise UserError(f"{folder} has no class folders; give a folder that holds one per class")
    if len(classes) == 1:
        only = next(iter(classes))
        raise UserError(f"{folder} has one class folder, {only!r}; give at least two classes")
    for name, files in classes.items():
        if not files:
            raise UserError(
                f"class folder {printable(folder / name)} has no images; fill or remove it"
            )
    return classes


def image_files(folder: Path) -> list[Path]:
    """The images directly in `folder`, in natural order, hidden and other files left out."""
    return _images(folder, Counter())


def _images(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Files whose ending names an image format; what else lies there is counted."""
    images = []
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            skipped["hidden file{s}"] += 1
        elif path.is_dir():
            skipped["folder{s} inside a class"] += 1
        elif path.suffix.lower() not in _endings():
            skipped["non-image file{s}"] += 1
        else:
            images.append(path)
    return images


@cache
def _endings() -> dict[str, str]:
    """File ending -> format, of what Pillow itself can decode here."""
    known = Image.registered_extensions()
    return {e: f for e, f in known.items() if f in Image.OPEN and f not in _NO_FORMATS}


def _check_same_classes(files: dict[str, dict[str, list[Path]]], root: Path) -> None:
    first, *others = files
    for other in others:
        if differing := sorted(files[first].keys() ^ files[other].keys()):
            names = ", ".join(repr(name) for name in differing[:5])
            raise UserError(
                f"{root}: {first} and {other} do not have the same classes: {names} is in one "
                "alone; give each split a folder for every class"
            )


def read(tree: Tree, size: int = 32, *, strict: bool = False) -> Dataset:
    """Decode every image of `tree` to (3, size, size). -> Dataset with notes on what was left out.

    An image that cannot be read, or has more than 25 megapixels, is left out, named and counted;
    with `strict` the first one is a UserError. Without split folders, a stratified fifth of the
    images becomes the test split (seed 0).
    """
    bad: list[Unreadable] = []
    splits = {name: _read_split(tree, name, size, strict, bad) for name in tree.files}
    notes = [f"classes in this order: {', '.join(next(iter(splits.values())).classes)}"]
    counts = sorted((what, n) for what, n in tree.skipped.items() if n)
    notes += [f"{n} {what.format(s='s' if n > 1 else '')} skipped" for what, n in counts]
    notes += _bad_note(bad)
    if "all" in splits:
        train, test = _cut_test(splits["all"], tree.root)
        notes.append(f"no split folders: {len(test)} of {len(splits['all'])} images are the test")
        splits = {"train": train, "test": test}
    val, test_split = splits.get("val"), splits.get("test")
    return Dataset("folder", splits["train"], val, test_split, tuple(notes), str(tree.root))


def _cut_test(split: Split, root: Path) -> tuple[Split, Split]:
    num_test = max(round(TEST_SHARE * len(split)), len(split.classes))
    try:
        return stratified_split(split, num_test, seed=0)
    except UserError as error:
        raise UserError(f"{root}: no test split can be cut off: {error}") from None


def printable(name: str | Path) -> str:
    """A file name as one printable line, whatever bytes it is made of."""
    return "".join(char if char.isprintable() else "?" for char in str(name))


def _bad_note(bad: list[Unreadable]) -> list[str]:
    if not bad:
        return []
    named = "; ".join(f"{printable(one.path)} ({one.reason})" for one in bad[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    return [f"{len(bad)} unreadable image{'s' * (len(bad) > 1)} skipped: {named}{more}"]


def _read_split(tree: Tree, name: str, size: int, strict: bool, bad: list[Unreadable]) -> Split:
    """One split, on as many threads as there are cores (Pillow decodes outside the lock)."""
    classes = tree.files[name]
    paths = [path for own in classes.values() for path in own]
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    numbers = [label for label, own in enumerate(classes.values()) for _ in own]
    for path, label, outcome in zip(paths, numbers, read_image_or_reason(paths, size), strict=True):
        if isinstance(outcome, str):
            bad.append(Unreadable(path.relative_to(tree.root), outcome))
            if strict:
                raise UserError(f"{printable(path)} cannot be read: {outcome}; mend or remove it")
        else:
            images.append(outcome)
            labels.append(label)
    for label, own in enumerate(classes):
        if label not in labels:
            raise UserError(f"class {own!r} of {tree.root}: none of its images can be read")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor(labels), tuple(printable(name) for name in classes))


def read_image_or_reason(paths: list[Path], size: int) -> Iterator[NDArray[np.uint8] | str]:
    """Per path, in order, its image as `read_image` gives it, or one line why there is none."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata: handled here
        yield from pool.map(partial(_outcome, size=size), paths)


def _outcome(path: Path, size: int) -> NDArray[np.uint8] | str:
    try:
        return read_image(path, size)
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        return printable(first_line(error).replace(str(path), path.name))


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """One image file as RGB: its centre square, resized with antialiased bicubic. (size, size, 3).

    First frame, turned as EXIF says, transparency over white, 16 bits scaled to 8. The square is
    taken before the resize, so no image is squashed and a long thin one needs no memory. Raises
    what Pillow raises, and ValueError above 25 megapixels.
    """
    if not path.is_file():
        raise ValueError("not a file")  # a broken link, or a pipe that would block
    try:
        image = Image.open(path, formats=sorted(set(_endings().values())))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("more than 25 megapixels") from None
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width * height / 1e6:.1f} megapixels, at most 25 fit")
        rgb = _rgb(ImageOps.exif_transpose(image))
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integers are 16-bit grey; floats are grey in [0, 1], or in [0, 255] where one is above 1."""
    grey = np.nan_to_num(values.astype(np.float64))
    if np.issubdtype(values.dtype, np.integer):
        grey = grey / 257
    elif grey.max() <= 1:
        grey = grey * 255
    return grey.clip(0, 255).round().astype(np.uint8)
