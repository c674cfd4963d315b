"""SOURCES: where images come from; `load_data` reads one of them into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from leanres.data.sources import cifar10, digits, folder, kept
from leanres.data.sources.source import LoadOptions, Source
from leanres.data.sources.source import Progress as Progress
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import cache_folder
from leanres.registry import Table

# Where a path is given in place of a name, later entries are asked first, so that a special layout
# has precedence over the general folder.
SOURCES: Table[Source] = Table(
    "data source",
    {
        "folder": Source(folder.load_folder, Path.is_dir, folder.LAYOUT),
        "arrays": Source(kept.load_kept),
        "digits": Source(digits.load_embedded_digits),
        "cifar10": Source(cifar10.load_cifar10, cifar10.find_files, cifar10.LAYOUT),
    },
)


def load_data(
    name: str = "cifar10",
    path: str | Path | None = None,
    *,
    size: int | None = None,
    strict: bool = False,
    download: bool = True,
    cache: Path | None = None,
    progress: Progress = None,
) -> Dataset:
    """The data set `name` ("cifar10", "digits", "folder", or the path of one), in memory.

    A path is read by the source that recognises its layout, "SOURCE:PATH" by that source. CIFAR-10
    is looked for at `path`, `$LEANRES_DATA`, in the cache, and then downloaded; no other data is
    ever substituted. `size` is the side in pixels that digits and a folder's images are resized to,
    by default 32; `strict` makes an unreadable image an error; `progress` is called with (what,
    done, total). UserError for data that is missing, damaged, of no known layout or of another
    size.
    """
    source, where = _identify(name, path)
    if size is not None and not 4 <= size <= 1024:
        raise UserError(f"images of {size} pixels; give a size from 4 to 1024")
    options = LoadOptions(where, cache or cache_folder(), size or 32, strict, download, progress)
    dataset = SOURCES[source].load(options)
    if size not in (None, side := dataset.train.images.shape[-1]):
        raise UserError(f"{source} images are not resized: they have {side} pixels, not {size}")
    return dataset


def origin_of(dataset: Dataset) -> dict[str, Any]:
    """What run.json keeps of a data set that no source can read again: where a copy of it lies."""
    if dataset.name in SOURCES and dataset.name != "arrays":
        return {}
    return {"data": "arrays", "path": str(kept.keep_arrays(dataset))}


def locate(name: str, path: str | Path | None = None, size: int | None = None) -> dict[str, Any]:
    """The arguments of `load_data` that run.json keeps, valid in any working directory."""
    source, where = _identify(name, path)
    return {"data": source, "path": where and str(where.resolve()), "size": size}


def _identify(name: str, path: str | Path | None) -> tuple[str, Path | None]:
    """The source and the path of the data; `name` may be a path that a source recognises."""
    prefix, _, rest = name.partition(":")
    if rest and prefix in SOURCES:
        name, path = prefix, rest
    if path is None and name not in SOURCES:
        place = Path(name).expanduser()
        for source in reversed(SOURCES):
            if SOURCES[source].recognises(place):
                return source, place
        if place.exists() or os.path.dirname(name):
            layouts = ", or ".join(entry.layout for entry in SOURCES.values() if entry.layout)
            problem = "holds no known data set" if place.exists() else "does not exist"
            raise UserError(f"{place} {problem}; give {layouts}")
    return name, None if path is None else Path(path).expanduser()
