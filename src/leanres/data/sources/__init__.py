"""SOURCES: where images come from; `load_data` reads one of them into memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from leanres.data.arrays import CHANNELS
from leanres.data.sources import (
    cifar10,
    cifar10_1,
    cifar100,
    digits,
    folder,
    idx,
    kept,
    npz,
    parquet,
    stl10,
    svhn,
    table,
)
from leanres.data.sources.published import Published, load_published
from leanres.data.sources.source import LoadOptions, Source
from leanres.data.sources.source import Progress as Progress
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import cache_folder, expanded, open_data
from leanres.registry import Table, check_whites, unknown


def _published(entry: Published) -> Source:
    """A published set, recognised by its files."""
    return Source(partial(load_published, entry), entry.find)


KEPT = "arrays"  # copies in the cache, which runs alone name
# Where a path is given in place of a name, later entries are asked first, so that a special layout
# has precedence over the general folder.
SOURCES: Table[Source] = Table(
    "data source",
    {
        "folder": Source(folder.load_folder, Path.is_dir, folder.LAYOUT),
        "arrays": Source(kept.load_kept),
        "digits": Source(digits.load_embedded_digits),
        "table": Source(table.load_table, table.find_table, table.LAYOUT, table.SETTINGS),
        "parquet": Source(
            parquet.load_parquet, parquet.holds_images, parquet.LAYOUT, parquet.SETTINGS
        ),
        "npz": Source(npz.load_npz, npz.is_npz, npz.LAYOUT),
        "cifar10": Source(cifar10.load_cifar10, cifar10.find_files),
        "idx": Source(idx.load_idx, idx.find_idx, idx.LAYOUT),
        "mnist": _published(idx.MNIST),
        "fashion-mnist": _published(idx.FASHION_MNIST),
        "svhn": _published(svhn.SVHN),
        "stl10": _published(stl10.STL10),
        "cifar10.1": _published(cifar10_1.CIFAR10_1),
        "cifar100-coarse": Source(partial(load_published, cifar100.COARSE)),
        "cifar100": _published(cifar100.CIFAR100),
    },
)


ARCHIVES = (".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
PUBLISHED = ("mnist", "fashion-mnist", "svhn", "stl10", "cifar10", "cifar10.1", "cifar100")


def load_data(
    name: str | Path = "cifar10",
    path: str | Path | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    strict: bool = False,
    download: bool = True,
    cache: Path | None = None,
    progress: Progress = None,
    whites: Mapping[str, float] | None = None,
) -> Dataset:
    """The data set `name` ("cifar10", "digits", "folder", or the path of one), in memory.

    A path is read by the source that recognises its layout, "SOURCE:PATH" by that source; columns
    of a table or parquet are named as in "parquet,image=scan,label=breed:PATH". Published sets are
    looked for at `path`, `$LEANRES_DATA`, in the cache, and then downloaded; no other data is ever
    substituted. `size` is the side in pixels that images are resized to: by default 32 for digits
    and image files, else their own. `channels` is what they are converted to: 1 (grey), 3 (RGB, the
    default) or 4 (RGBA). `whites` are the grey
    values of more than 8 bits that are shown white, as a network's `preprocess` has them, by
    default the data's own. `strict` makes an unreadable image an error; `progress` is called with
    (what, done, total). UserError for data that is missing, damaged, of no known layout or of
    another size.
    """
    found = _identify(name, path)
    if size is not None and not 4 <= size <= 1024:
        raise UserError(f"images of {size} pixels; give a size from 4 to 1024")
    if channels not in (None, *CHANNELS):
        raise UserError(f"{channels} channels; give 1 (grey), 3 (RGB) or 4 (RGBA)")
    asked = (size, channels, strict, download, progress, found.settings)
    options = LoadOptions(found.path, cache or cache_folder(), *asked)
    dataset = _load(found.source, options, check_whites("whites", whites or {}))
    dataset = dataset.in_channels(channels)
    if size not in (None, side := dataset.train.images.shape[-1]):
        raise UserError(
            f"{found.source} images are not resized: they have {side} pixels, not {size}"
        )
    told = (f"{found.path}: read as {found.source}",) if found.by_looking else ()
    return replace(dataset, notes=(*told, *dataset.notes)) if told else dataset


def _load(source: str, options: LoadOptions, whites: Mapping[str, float]) -> Dataset:
    """The data set, with these whites: mostly they are its own, which the cache has."""
    dataset = SOURCES[source].load(options)
    if all(dataset.whites.get(kind, white) == white for kind, white in whites.items()):
        return dataset
    del dataset  # before as much memory is taken again
    return SOURCES[source].load(replace(options, whites=whites))


def origin_of(dataset: Dataset) -> dict[str, Any]:
    """What run.json keeps of a data set that no source can read again: where a copy of it lies."""
    if dataset.name in SOURCES and dataset.name != KEPT:
        return {}
    return {"data": KEPT, "path": str(kept.keep_arrays(dataset))}


def locate(
    name: str | Path,
    path: str | Path | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> dict[str, Any]:
    """The arguments of `load_data` that run.json keeps, valid in any working directory."""
    found = _identify(name, path)
    data = ",".join([found.source, *(f"{key}={value}" for key, value in found.settings.items())])
    kept = found.path and str(found.path.resolve())
    return {"data": data, "path": kept, "size": size, "channels": channels}


class _Found(NamedTuple):
    """The data that the user means: its source with settings, and its path if it has one."""

    source: str
    settings: dict[str, str]
    path: Path | None
    by_looking: bool = False


def _identify(name: str | Path, path: str | Path | None) -> _Found:
    """What `name` and `path` mean; `name` may be a path that a source recognises."""
    name = str(name)
    if not name.strip():
        raise UserError("no data set is named: give its name, or a path (a dot: this folder)")
    before, _, rest = name.partition(":")
    if rest and before.partition(",")[0] in SOURCES:
        name, path = before, rest
    source, _, given = name.partition(",")
    if source in SOURCES or path is not None:
        where = None if path is None else expanded(path)
        return _Found(source, _settings(source, given), where)
    place = expanded(name)
    for source in reversed(SOURCES):
        if SOURCES[source].recognises(place):
            return _Found(source, {}, place, by_looking=True)
    raise _unrecognised(place, name)


def _unrecognised(place: Path, name: str) -> UserError:
    """What to say of a path that no source reads."""
    if place.is_file():
        open_data(place, sys.maxsize).close()  # UserError for what only stands for a file
        if place.suffix.lower() in ARCHIVES:
            return UserError(
                f"{place} is an archive of no known data set: unpack it, and name its folder"
            )
    problem = "holds no known data set" if place.exists() else "does not exist"
    if not place.exists() and not os.path.dirname(name):
        known = [source for source in SOURCES if source != KEPT]
        return UserError(f"{place} {problem}, and there is {unknown('data source', name, known)}")
    layouts = ", or ".join(entry.layout for entry in SOURCES.values() if entry.layout)
    named = ", ".join(PUBLISHED)
    return UserError(f"{place} {problem}; give {layouts}, or the files of {named}")


def _settings(source: str, given: str) -> dict[str, str]:
    """Settings as in "image=scan,label=breed". UserError for one that the source does not have."""
    known, settings = SOURCES[source].settings, {}
    for word in given.split(",") if given else ():
        key, _, value = word.partition("=")
        if key not in known or not value:
            fits = ", ".join(f"{name}=NAME" for name in known) or "no settings"
            raise UserError(f"{source},{word}: give {source} {fits}, as in {source},...:PATH")
        settings[key] = value
    return settings
