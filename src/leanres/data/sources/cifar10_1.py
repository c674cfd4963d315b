"""CIFAR-10.1: 2,000 new test images for CIFAR-10 (arXiv:1902.10811), for testing alone.

Layout: https://github.com/modestyachts/CIFAR-10.1.
"""

from __future__ import annotations

from pathlib import Path

from leanres.data.sources.cifar10_formats import CLASSES
from leanres.data.sources.numpy_files import read_npy
from leanres.data.sources.published import Published, in_subfolders
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Split, splits_of
from leanres.errors import UserError

FILES = ("cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy")
_URL = "https://github.com/modestyachts/CIFAR-10.1/raw/master/datasets/"


def find_files(path: Path) -> DataFiles | None:
    """Its files in a folder, a checkout of the repository, or beside one of them; else None."""
    if path.is_file():
        return _files_directly_in(path.parent) if path.name in FILES else None
    return in_subfolders(path, ("", "datasets", "cifar10.1"), _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    paths = tuple(folder / name for name in FILES)
    return DataFiles("npy", folder, paths) if paths[0].is_file() else None


def _read(files: DataFiles, options: LoadOptions) -> dict[str, Split]:
    if not files.paths[1].exists():
        raise UserError(f"{files.paths[1]} is missing; put it there")
    images, labels = map(read_npy, files.paths)
    return splits_of({"test": (images, labels)}, CLASSES, options.own_size)


CIFAR10_1 = Published(
    name="cifar10.1",
    title="CIFAR-10.1",
    layout="CIFAR-10.1 (cifar10.1_v6_data.npy and its labels)",
    find=find_files,
    read=_read,
    downloads={
        FILES[0]: (
            f"{_URL}{FILES[0]}",
            "2997188e5816f5bd545dc77771b6227828c28146049fcecf3fa10775474cacc6",
        ),
        FILES[1]: (
            f"{_URL}{FILES[1]}",
            "ae40beda001693674edc94d925ee8268cfe68905f8f9aff800c8dcdfcd6c9448",
        ),
    },
    counts={"test": 2000},
)
