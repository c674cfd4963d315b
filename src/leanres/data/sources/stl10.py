"""STL-10: 96x96 pixels, 5,000 train and 8,000 test images; its unlabelled ones are not used.

Layout: https://cs.stanford.edu/~acoates/stl10: images (N, 3, width, height) uint8, labels from 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leanres.data.sources.archive import is_archive_of, read_contents
from leanres.data.sources.published import Published, in_subfolders
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Split, splits_of
from leanres.errors import UserError

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
ARCHIVE = "stl10_binary.tar.gz"
_SIDE = 96
_MAX_FILE, _MAX_ARCHIVE = 300_000_000, 4_000_000_000  # of 221 MB, and of 2.6 GB, 3.1 unpacked


def find_files(path: Path) -> DataFiles | None:
    """Its files in a folder, or its archive; else None."""
    if is_archive_of(path, (ARCHIVE,), FILES):
        return DataFiles("archive", path.parent, (path,))
    return in_subfolders(path, ("", "stl10_binary", "stl10"), _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    paths = tuple(folder / name for name in FILES)
    if any(path.is_file() for path in paths):
        return DataFiles("binary", folder, paths)
    archive = folder / ARCHIVE
    return DataFiles("archive", folder, (archive,)) if archive.is_file() else None


def _read(files: DataFiles, options: LoadOptions) -> dict[str, Split]:
    contents, where = read_contents(files, FILES, _MAX_FILE, _MAX_ARCHIVE)
    pairs = {}
    for split in ("train", "test"):
        pixels, labels = f"{split}_X.bin", f"{split}_y.bin"
        if missing := {pixels, labels} - contents.keys():
            raise UserError(f"{where / min(missing)} is missing; put it there or fetch it again")
        numbers = np.frombuffer(contents[labels], np.uint8)
        if not len(numbers) or len(contents[pixels]) != len(numbers) * 3 * _SIDE * _SIDE:
            raise UserError(
                f"{where / pixels} has {len(contents[pixels]):,} bytes, not {3 * _SIDE * _SIDE:,}"
                f" for each of the {len(numbers):,} labels in {labels}: fetch them again"
            )
        by_columns = np.frombuffer(contents[pixels], np.uint8).reshape(-1, 3, _SIDE, _SIDE)
        pairs[split] = (by_columns.transpose(0, 3, 2, 1), numbers.astype(np.int64) - 1)
    return splits_of(pairs, CLASSES, options.own_size)


STL10 = Published(
    name="stl10",
    title="STL-10",
    layout="STL-10 (train_X.bin, ..., or stl10_binary.tar.gz)",
    find=find_files,
    read=_read,
    downloads={
        ARCHIVE: (
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
        )
    },
    counts={"train": 5000, "test": 8000},
    size=_SIDE,
)
