"""CIFAR-10: found in a folder or archive, in the cache, or downloaded.

Layouts: https://www.cs.toronto.edu/~kriz/cifar.html (batches and archives) and the parquet shards
of the Hub's `uoft-cs/cifar10`. `cifar10_formats` decodes them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from leanres.data.sources.cache import all_cached, cached
from leanres.data.sources.cifar10_formats import (
    BINARY_FILES,
    PYTHON_FILES,
    SHARD_NAME,
    CifarFiles,
    read_cifar10,
)
from leanres.data.sources.download import download
from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset, Split
from leanres.errors import NotFoundError, UserError

LAYOUT = "CIFAR-10 (python or binary batches, their .tar.gz, or parquet)"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "plain_text", "data", "cifar10")
FINGERPRINTS = {  # of all images with their labels and class names, in any order
    "train": "aae5113c3782113e1d8020d9782aa4397707df320b7f56dd5e8e36ec35878f0d",
    "test": "9c0d5f843320d4e1d92def01e474797a7e75311259f1f257991184de786ea0a4",
}
_COMPLETE = (50_000, 10_000)  # images of train and test
_ADVICE = (
    f"give a path, or set LEANRES_DATA to a folder, with {LAYOUT}, "
    "or use the embedded digits (--data digits)"
)


def load_cifar10(options: LoadOptions) -> Dataset:
    """From the given path, else `$LEANRES_DATA`, else the cache, else a download.

    UserError if the given path or `$LEANRES_DATA` exists but has no CIFAR-10: nothing else is
    tried then. NotFoundError if it is in none of the places.
    """
    if options.size != 32:
        raise UserError(f"CIFAR-10 has 32x32 pixels, not {options.size}; leave the size out")
    if options.path is not None:
        return _decoded(_files_in(options.path, "the given path"), options)
    set_by_user = os.environ.get("LEANRES_DATA")
    if set_by_user and (path := Path(set_by_user).expanduser()).exists():
        return _decoded(_files_in(path, "$LEANRES_DATA"), options)
    unused = f"$LEANRES_DATA ({set_by_user} does not exist)" if set_by_user else "$LEANRES_DATA"
    dataset = _from_cache(options) or _downloaded(options, unused)
    return replace(dataset, notes=(*dataset.notes, *([f"{unused}: not used"] * bool(set_by_user))))


def find_files(path: Path) -> CifarFiles | None:
    """The files of CIFAR-10 at `path`, which is a folder, its parent, or an archive; else None."""
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return CifarFiles("archive", path.parent, (path,))
    folders = [path / name for name in SUBFOLDERS if (path / name).is_dir()]
    return next((files for folder in folders if (files := _files_directly_in(folder))), None)


def _files_directly_in(folder: Path) -> CifarFiles | None:
    """One file of a format is enough to choose it; reading reports the missing ones."""
    for kind, names in (("python", PYTHON_FILES), ("binary", BINARY_FILES)):
        if any((folder / name).is_file() for name in names):
            meta = folder / ("batches.meta" if kind == "python" else "batches.meta.txt")
            files = [folder / name for name in names] + [meta] * meta.is_file()
            return CifarFiles(kind, folder, tuple(files))
    shards = tuple(sorted(p for p in folder.glob("*.parquet") if SHARD_NAME.fullmatch(p.name)))
    if shards:
        return CifarFiles("parquet", folder, shards)
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    return CifarFiles("archive", folder, tuple(archives[:1])) if archives else None


def _files_in(path: Path, origin: str) -> CifarFiles:
    """The files at `path`; UserError, naming the origin of the path, if there are none."""
    if not path.exists():
        raise UserError(f"{origin} {path} does not exist; {_ADVICE}")
    if files := find_files(path):
        return files
    tried = "data_batch_1, data_batch_1.bin, train-*.parquet or cifar-10-python.tar.gz"
    raise UserError(f"{origin} {path} holds no CIFAR-10 (looked for {tried}); {_ADVICE}")


def _decoded(files: CifarFiles, options: LoadOptions) -> Dataset:
    """The data set in `files`, decoded or from the cache; a note tells if it is not complete."""

    def decode() -> Dataset:
        train, test = read_cifar10(files, options.progress)
        where = f"{files.root} ({files.kind})"
        return Dataset("cifar10", train, None, test, _differences(train, test), where)

    return cached("cifar10", files.root, files.paths, [files.kind], options.cache, decode)


def _differences(train: Split, test: Split) -> tuple[str, ...]:
    """What is not as in CIFAR-10: a note; or for each split of the right size that differs, one."""
    if (len(train), len(test)) != _COMPLETE:
        return (f"{len(train):,} train and {len(test):,} test images, not 50,000 and 10,000",)
    found = {"train": train.fingerprint, "test": test.fingerprint}
    return tuple(
        f"the {name} images or labels are not CIFAR-10's: a file is damaged or was edited"
        f" (fingerprint {found[name]}, not {known})"
        for name, known in FINGERPRINTS.items()
        if found[name] != known
    )


def _from_cache(options: LoadOptions) -> Dataset | None:
    """A downloaded archive, or the newest complete CIFAR-10 that was decoded from anywhere."""
    if files := find_files(options.cache):
        return _decoded(files, options)
    for file, dataset in all_cached("cifar10", options.cache):
        if (len(dataset.train), len(dataset.test or ())) == _COMPLETE:
            return replace(dataset, source=f"{file}, decoded from {dataset.source}")
    return None


def _downloaded(options: LoadOptions, unused: str) -> Dataset:
    tried = f"CIFAR-10 not found: tried {unused} and the cache {options.cache}"
    if not options.download:
        raise NotFoundError(f"{tried}; {_ADVICE}")
    target = options.cache / ARCHIVES[0]
    try:
        download(target, URL, SHA256, progress=options.progress)
    except UserError as error:
        raise NotFoundError(f"{tried}; {error}; {_ADVICE}") from None
    return _decoded(_files_in(target, "the downloaded archive"), options)
