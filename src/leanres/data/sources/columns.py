"""Columns of tables, found by their usual names or as the user gave them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leanres.data.arrays import labels_of
from leanres.data.sources.source import SPLIT_NAMES
from leanres.errors import UserError, printable, shortened

MAX_NAME = 255  # characters of a class: numpy's arrays of text are as wide as the longest
# In this order, where a table has several.
IMAGE = ("image", "img", "picture", "png", "jpg", "jpeg", "photo", "bytes", "pixels")
FILE = ("file", "filename", "file_name", "path", "filepath", "file_path", "image_path", "image",
        "img", "image_id", "id", "name")  # fmt: skip
LABEL = ("label", "labels", "class", "class_name", "target", "category", "fine_label", "y",
         "coarse_label", "species", "breed", "diagnosis")  # fmt: skip
SPLIT = ("split",)


def column(
    kind: str, names: Sequence[str], known: Sequence[str], settings: Mapping[str, str], source: str
) -> str | None:
    """The column of a kind: the one given in the settings, else the first known name.

    None where there is none; UserError where the one given is not there.
    """
    if given := settings.get(kind):
        if given not in names:
            there = printable(", ".join(names[:20]))
            raise UserError(
                f"no column {given!r}: there are {there}; give {source},{kind}=NAME:PATH"
            )
        return given
    plain = {name.strip().lower().replace("-", "_").replace(" ", "_"): name for name in names}
    return next((plain[name] for name in known if name in plain), None)


def no_column(kind: str, names: Sequence[str], known: Sequence[str], source: str) -> UserError:
    """The error for a table without a column of a kind."""
    there = printable(", ".join(names[:20])) or "none"
    return UserError(
        f"which column is the {kind}? there are {there}; name it"
        f" {', '.join(known[:3])} or give --data {source},{kind}=NAME:PATH"
    )


def split_of(value: object, where: str) -> str:
    """train, val or test for a value of a split column. UserError for another."""
    name = str(value).strip().lower()
    if name not in SPLIT_NAMES:
        came = printable(str(value))[:40]
        raise UserError(f"{where}: split {came!r}: give train, val or test")
    return SPLIT_NAMES[name]


def numbered(
    values: Iterable[Any], classes: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Labels as numbers from 0, and the class names; with `classes` they are its positions."""
    values = list(values)
    if long := next((v for v in values if isinstance(v, str) and len(v) > MAX_NAME), None):
        shown = printable(shortened(long, 60))
        raise UserError(f"label {shown} has {len(long):,} characters: give at most {MAX_NAME}")
    (labels,), names = labels_of([values], classes)
    return labels.tolist(), names
