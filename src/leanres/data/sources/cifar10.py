"""CIFAR-10: found in a folder or archive, in the cache, or downloaded.

Layouts: https://www.cs.toronto.edu/~kriz/cifar.html (batches and archives) and the parquet shards
of the Hub's `uoft-cs/cifar10`. `cifar10_formats` decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leanres.data.sources.archive import is_archive_of
from leanres.data.sources.cifar10_formats import (
    BINARY_FILES,
    PYTHON_FILES,
    SHARD_NAME,
    holds_cifar10,
    read_cifar10,
)
from leanres.data.sources.published import Published, in_subfolders, load_published
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Dataset, Split
from leanres.errors import UserError

ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "plain_text", "data", "cifar10")
FINGERPRINTS = {  # of all images with their labels and class names, in any order
    "train": "aae5113c3782113e1d8020d9782aa4397707df320b7f56dd5e8e36ec35878f0d",
    "test": "9c0d5f843320d4e1d92def01e474797a7e75311259f1f257991184de786ea0a4",
}


def load_cifar10(options: LoadOptions) -> Dataset:
    """The data set as `load_published` finds it, always of 32 pixels."""
    if options.own_size not in (None, CIFAR10.size):
        raise UserError(f"CIFAR-10 has 32x32 pixels, not {options.own_size}; leave the size out")
    return load_published(CIFAR10, options)


def find_files(path: Path) -> DataFiles | None:
    """The files of CIFAR-10 at `path`, which is a folder, its parent, or an archive; else None."""
    if is_archive_of(path, ARCHIVES, (*PYTHON_FILES, *BINARY_FILES)):
        return DataFiles("archive", path.parent, (path,))
    return in_subfolders(path, SUBFOLDERS, _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    """One file of a format is enough to choose it; reading reports the missing ones."""
    for kind, names in (("python", PYTHON_FILES), ("binary", BINARY_FILES)):
        if any((folder / name).is_file() for name in names):
            meta = folder / ("batches.meta" if kind == "python" else "batches.meta.txt")
            files = [folder / name for name in names] + [meta] * meta.is_file()
            return DataFiles(kind, folder, tuple(files))
    named = (p for p in folder.glob("*.parquet") if SHARD_NAME.fullmatch(p.name) and p.is_file())
    shards = tuple(sorted(named))
    if any(map(holds_cifar10, shards)):
        return DataFiles("parquet", folder, shards)
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    return DataFiles("archive", folder, tuple(archives[:1])) if archives else None


def _read(files: DataFiles, options: LoadOptions) -> dict[str, Split]:
    train, test = read_cifar10(files, options.progress)
    return {"train": train, "test": test}


def differences(splits: Mapping[str, Split]) -> tuple[str, ...]:
    """A note for each split of which an image, a label or a class name is not CIFAR-10's."""
    found = {name: split.fingerprint for name, split in splits.items()}
    return tuple(
        f"the {name} images or labels are not CIFAR-10's: a file is damaged or was edited"
        f" (fingerprint {found[name]}, not {known})"
        for name, known in FINGERPRINTS.items()
        if found[name] != known
    )


CIFAR10 = Published(
    name="cifar10",
    title="CIFAR-10",
    layout="CIFAR-10 (python or binary batches, their .tar.gz, or parquet)",
    find=find_files,
    read=_read,
    downloads={
        ARCHIVES[0]: (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        )
    },
    counts={"train": 50_000, "test": 10_000},
    fixed=True,
    check=differences,
)
