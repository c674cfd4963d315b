"""Arrays in an .npz file, found by their names: MedMNIST's, Keras's, and others alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from leanres.data.sources.cache import cached
from leanres.data.sources.numpy_files import npz_shapes, read_npz
from leanres.data.sources.source import SPLIT_NAMES, LoadOptions
from leanres.data.split import Dataset, splits_of
from leanres.errors import UserError, named, printable

LAYOUT = "an .npz of images and labels"
FITS = (
    "train_images, train_labels, test_images, test_labels (also x_train, y_train ..., or images and"
    " labels, data and target, x and y without splits), and class_names where there are any"
)
_KINDS = {
    **dict.fromkeys(("images", "image", "imgs", "img", "x", "data", "arr_0"), "images"),
    **dict.fromkeys(("labels", "label", "y", "target", "targets", "arr_1"), "labels"),
    **dict.fromkeys(("classes", "class_names", "label_names", "target_names"), "classes"),
}


def is_npz(path: Path) -> bool:
    """Whether a path is an .npz file by its name."""
    return path.suffix.lower() == ".npz" and path.is_file()


def load_npz(options: LoadOptions) -> Dataset:
    """The arrays of the file `options.path`, at their own size unless another is asked for.

    UserError for a file that is damaged or whose arrays are named otherwise or do not fit.
    """
    if options.path is None:
        raise UserError(f"an .npz needs its path; give {LAYOUT}")
    if not options.path.is_file():
        came = "is a folder" if options.path.is_dir() else "does not exist"
        raise UserError(f"{options.path} {came}; give {LAYOUT}")
    decode = partial(_read, options.path, options.own_size, options.channels)
    settings = [options.own_size, options.channels]
    return cached("npz", options.path.parent, [options.path], settings, options.cache, decode)


def _read(path: Path, size: int | None, channels: int) -> Dataset:
    roles = _roles(path, npz_shapes(path))
    arrays = read_npz(path, roles.values())
    names = arrays.get(roles.get(("", "classes"), ""))
    classes = None if names is None else tuple(str(name) for name in names.ravel().tolist())
    parts = dict.fromkeys(split for split, kind in roles if kind != "classes")
    pairs = {
        split: (arrays[roles[split, "images"]], arrays[roles[split, "labels"]]) for split in parts
    }
    told = ", ".join(name for (_, kind), name in roles.items() if kind != "classes")
    with named(path):
        named_pairs = {split or "all": pair for split, pair in pairs.items()}
        splits = splits_of(named_pairs, classes, size, channels)
        return Dataset.of("npz", splits, [f"arrays {printable(told)}"], str(path))


def _roles(path: Path, names: Iterable[str]) -> dict[tuple[str, str], str]:
    """(split, kind) -> the array's name; the split is "" where arrays name none.

    UserError where names do not say which are which, or images lack labels.
    """
    roles: dict[tuple[str, str], str] = {}
    for name in names:
        if (role := _role(name)) and roles.setdefault(role, name) != name:
            raise UserError(
                f"{path}: {printable(roles[role])} and {printable(name)} are both"
                f" {' '.join(role).strip()}: give one"
            )
    splits = {split for split, kind in roles if kind != "classes"}
    lacking = [(s, kind) for s in splits for kind in ("images", "labels") if (s, kind) not in roles]
    if not splits or lacking or ("" in splits and len(splits) > 1):
        came = printable(", ".join(list(names)[:20]))
        raise UserError(f"{path} has arrays {came}; give {FITS}")
    return roles


def _role(name: str) -> tuple[str, str] | None:
    """Split and kind that an array's name tells, as "x_train"; None where it tells none."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")
    rest = "_".join(word for word in words if word not in SPLIT_NAMES)
    kind = _KINDS.get(rest)
    return ("" if kind == "classes" else split, kind) if kind else None
