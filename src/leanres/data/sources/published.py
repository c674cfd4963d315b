"""Published data sets: found at a path, in `$LEANRES_DATA` or in the cache, or downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanres.data.sources.cache import all_cached, cached
from leanres.data.sources.download import download
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Dataset, Split
from leanres.errors import NotFoundError, UserError, named
from leanres.io import expanded, file_digest

Find = Callable[[Path], DataFiles | None]


@dataclass(frozen=True)
class Published:
    """A data set with a name: what its files are, and how to get and to read them.

    `find` gives its files in a folder or archive. `find_given` is asked in its place where the
    user named the path, if names of files alone do not tell the set from others. `downloads`: file
    name -> URL and sha256. `md5`: of other files that it comes as. `counts`: the images of each
    split. `size`: their side in pixels. `fixed`: `$LEANRES_DATA`, if it exists, is meant to hold
    this set.
    """

    name: str
    title: str
    layout: str
    find: Find
    read: Callable[[DataFiles, LoadOptions], Mapping[str, Split]]
    downloads: Mapping[str, tuple[str, str]]
    counts: Mapping[str, int]
    size: int = 32
    find_given: Find | None = None
    fixed: bool = False
    md5: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Mapping[str, Split]], Iterable[str]] | None = None  # notes on its content

    @property
    def advice(self) -> str:
        """What to do where it is not found."""
        return (
            f"give a path, or set LEANRES_DATA to a folder, with {self.layout},"
            " or use the embedded digits (--data digits)"
        )


def load_published(published: Published, options: LoadOptions) -> Dataset:
    """From the given path, else `$LEANRES_DATA`, else the cache, else a download.

    UserError if the given path has no such data, or `$LEANRES_DATA` no CIFAR-10: nothing else is
    tried then. NotFoundError if it is in none of the places.
    """
    if options.path is not None:
        return _decoded(published, _given(published, options.path), options)
    set_by_user, unused = os.environ.get("LEANRES_DATA"), "$LEANRES_DATA"
    if set_by_user:
        path = expanded(set_by_user)
        if files := published.find(path):
            return _decoded(published, files, options)
        if path.exists() and published.fixed:
            raise _has_none(published, f"$LEANRES_DATA {path}")
        why = f"holds no {published.title}" if path.exists() else "does not exist"
        unused = f"$LEANRES_DATA ({set_by_user} {why})"
    dataset = _from_cache(published, options) or _downloaded(published, options, unused)
    return replace(dataset, notes=(*dataset.notes, *([f"{unused}: not used"] * bool(set_by_user))))


def in_subfolders(path: Path, names: Iterable[str], find: Find) -> DataFiles | None:
    """What `find` finds first in these subfolders; "" is the folder itself."""
    folders = (path / name for name in names)
    return next((files for folder in folders if folder.is_dir() and (files := find(folder))), None)


def _given(published: Published, path: Path) -> DataFiles:
    if not path.exists():
        raise UserError(f"the given path {path} does not exist; {published.advice}")
    if files := (published.find_given or published.find)(path):
        return files
    raise _has_none(published, f"the given path {path}")


def _has_none(published: Published, place: str) -> UserError:
    return UserError(f"{place} holds no {published.title}; {published.advice}")


def _decoded(published: Published, files: DataFiles, options: LoadOptions) -> Dataset:
    """The data set in `files`, decoded or from the cache; a note tells if it is not complete."""

    def decode() -> Dataset:
        with named(files.root):
            splits = published.read(files, options)
        counts = {name: len(split) for name, split in splits.items()}
        notes = published.check(splits) if published.check else _changed(published, files)
        if counts != published.counts:
            came, fits = (_listed(each) for each in (counts, published.counts))
            notes = (f"{came} images, not {fits}",)
        train = splits.get("train") or next(iter(splits.values())).subset([])
        where = f"{files.root} ({files.kind})"
        return Dataset(published.name, train, None, splits.get("test"), tuple(notes), where)

    settings = [files.kind, options.own_size]
    return cached(published.name, files.root, files.paths, settings, options.cache, decode)


def _changed(published: Published, files: DataFiles) -> Iterator[str]:
    """A note for each file that is not the published one, where that one's checksum is known."""
    known = {name: ("sha256", sha256) for name, (_, sha256) in published.downloads.items()}
    known |= {name: ("md5", md5) for name, md5 in published.md5.items()}
    for path in files.paths:
        algorithm, fits = known.get(path.name, ("", ""))
        if algorithm and (came := file_digest(path, sys.maxsize, algorithm)) != fits:
            yield (
                f"{path.name} is not {published.title}'s: it is damaged or was edited"
                f" ({algorithm} {came}, not {fits})"
            )


def _listed(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {name}" for name, count in counts.items())


def _from_cache(published: Published, options: LoadOptions) -> Dataset | None:
    """What was downloaded, or the newest complete set that was decoded from anywhere."""
    if files := published.find(options.cache):
        return _decoded(published, files, options)
    wanted = options.own_size or published.size
    for file, dataset in all_cached(published.name, options.cache):
        counts = {name: len(split) for name, split in dataset.splits.items()}
        if counts == published.counts and dataset.train.images.shape[-1] == wanted:
            return replace(dataset, source=f"{file}, decoded from {dataset.source}")
    return None


def _downloaded(published: Published, options: LoadOptions, unused: str) -> Dataset:
    folder = options.cache / published.name
    tried = f"{published.title} not found: tried {unused} and the cache {options.cache}"
    if not options.download:
        raise NotFoundError(f"{tried}; {published.advice}")
    try:
        for name, (url, sha256) in published.downloads.items():
            if not (folder / name).exists():
                download(folder / name, url, sha256, progress=options.progress)
    except UserError as error:
        raise NotFoundError(f"{tried}; {error}; {published.advice}") from None
    return _decoded(published, _given(published, folder), options)
