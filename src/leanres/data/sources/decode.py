"""Decode the image files of a data set into one array per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from leanres.data.arrays import room_for
from leanres.data.greys import GreyCounts, Greys
from leanres.data.image_files import Decoded, ImageItem, decode_or_reason
from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset, Split
from leanres.errors import UserError, named, printable

NUM_NAMED = 5  # of the images that cannot be read
_EVERY = 64  # images from one report of the progress to the next


class Row(NamedTuple):
    """What is known of an image before it is decoded."""

    name: str
    split: str
    label: int


@dataclass(frozen=True)
class Listing:
    """The images of a data set. `items` gives them in the order of `rows`, each time it is called.

    `place` is where they lie, for messages.
    """

    rows: Sequence[Row]
    classes: tuple[str, ...]
    items: Callable[[], Iterable[ImageItem]]
    place: Path


@dataclass
class _Decoding:
    """What has been decoded so far."""

    images: dict[str, NDArray[np.uint8]]  # split -> (N, C, size, size)
    rows: dict[str, list[Row]]  # split -> those in `images`
    bad: list[str] = field(default_factory=list)  # the first NUM_NAMED names, and the reasons
    num_bad: int = 0
    greys: dict[int, tuple[Greys, NDArray[np.uint8]]] = field(default_factory=dict)


def decode_dataset(
    name: str, listing: Listing, options: LoadOptions, notes: Sequence[str], source: Path
) -> Dataset:
    """The data set `name` of the images listed, (C, size, size) each, with further notes.

    source: where the images came from. `options.whites` say which grey values of more than 8 bits
    are shown white; of the others the data set's own values do. An image that cannot be read is
    left out, named and counted; with `strict` the first one is a UserError. Each split is one array
    that is filled in place, so
    memory is bounded by the images.
    """
    found = _decode(listing, options)
    whites = {**_whites(found), **options.whites}
    _decode_again(listing, options, found, whites)
    counts = GreyCounts(whites)
    for greys, _ in found.greys.values():
        counts.add(greys)
    notes = [*notes, *counts.notes(), *_unreadable_note(found)]
    _check_no_class_lost(listing, found)
    splits = {part: _split(found, part, listing.classes) for part in found.images}
    with named(source):
        return Dataset.of(name, splits, notes, str(source), whites)


def _decode(listing: Listing, options: LoadOptions) -> _Decoding:
    counts = Counter(row.split for row in listing.rows)
    shape = (options.channels, options.size, options.size)
    images = {name: room_for((n, *shape)) for name, n in counts.items()}
    found, total = _Decoding(images, {name: [] for name in counts}), len(listing.rows)
    outcomes = decode_or_reason(listing.items(), options.size, options.channels, options.whites)
    for i, (row, outcome) in enumerate(zip(listing.rows, outcomes, strict=True)):
        if isinstance(outcome, Decoded):
            _keep(found, i, row, outcome)
        elif options.strict:
            name = printable(listing.place / row.name)
            raise UserError(f"{name} cannot be read: {outcome}; fix or remove it")
        else:
            found.num_bad += 1
            found.bad += [f"{printable(row.name)} ({outcome})"] * (found.num_bad <= NUM_NAMED)
        if options.progress and ((i + 1) % _EVERY == 0 or i + 1 == total):
            options.progress("decoding images", i + 1, total)
    return found


def _keep(found: _Decoding, i: int, row: Row, image: Decoded) -> None:
    place = found.images[row.split][len(found.rows[row.split])]
    place[:] = image.pixels.transpose(2, 0, 1)
    found.rows[row.split].append(row)
    if image.greys:
        found.greys[i] = image.greys, place


def _whites(found: _Decoding) -> dict[str, float]:
    """Kind -> the white of the data set's grey values of more than 8 bits."""
    ranges: dict[str, Greys] = {}
    for greys, _ in found.greys.values():
        ranges[greys.kind] = greys.joined(ranges.get(greys.kind, greys))
    return {kind: greys.white for kind, greys in ranges.items()}


def _decode_again(
    listing: Listing, options: LoadOptions, found: _Decoding, whites: Mapping[str, float]
) -> None:
    """Decode images whose white is not the data set's: one alone may be too dark to show it."""
    again = {
        i: place
        for i, (greys, place) in found.greys.items()
        if greys.kind not in options.whites and greys.white != whites[greys.kind]
    }
    chosen = (item for i, item in enumerate(listing.items()) if i in again) if again else ()
    redone = decode_or_reason(chosen, options.size, options.channels, whites)
    for place, outcome in zip(again.values(), redone, strict=True):
        if isinstance(outcome, Decoded):
            place[:] = outcome.pixels.transpose(2, 0, 1)


def _unreadable_note(found: _Decoding) -> Iterator[str]:
    if found.num_bad:
        more = f"; and {found.num_bad - NUM_NAMED} more" if found.num_bad > NUM_NAMED else ""
        count = f"{found.num_bad} unreadable image{'s' * (found.num_bad > 1)}"
        yield f"{count} skipped: {'; '.join(found.bad)}{more}"


def _check_no_class_lost(listing: Listing, found: _Decoding) -> None:
    """UserError for a class of a split that had images, but none that can be read."""
    read = {(split, row.label) for split, rows in found.rows.items() for row in rows}
    for row in listing.rows if found.num_bad else ():
        if (row.split, row.label) not in read:
            name = printable(listing.classes[row.label])
            place = printable(listing.place)
            raise UserError(
                f"class {name!r} of {place}: none of its images can be read: {'; '.join(found.bad)}"
            )


def _split(found: _Decoding, name: str, classes: tuple[str, ...]) -> Split:
    rows = found.rows[name]
    images = torch.from_numpy(found.images[name][: len(rows)])
    labels = torch.tensor([row.label for row in rows], dtype=torch.int64)
    names = tuple(map(printable, classes))
    return Split(images, labels, names, tuple(printable(row.name) for row in rows))


def counted(skipped: Mapping[str, int]) -> list[str]:
    """Notes on what was skipped, from counts by kind ("hidden file{s}")."""
    counts = sorted((what, n) for what, n in skipped.items() if n)
    return [f"{n} {what.format(s='s' if n > 1 else '')} skipped" for what, n in counts]
