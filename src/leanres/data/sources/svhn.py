"""SVHN: house numbers, 32x32 pixels, in the MATLAB files train_32x32.mat and test_32x32.mat.

Layout: http://ufldl.stanford.edu/housenumbers: X (32, 32, 3, N) uint8, y (N, 1), in which 10 is
the digit 0.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanres.data.sources.idx import DIGITS
from leanres.data.sources.mat5 import read_mat5
from leanres.data.sources.published import Published, in_subfolders
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Split, splits_of
from leanres.errors import undamaged
from leanres.io import MIB, MOST_DEFLATED, open_data

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
MAX_BYTES = 4096 * MIB
_ERRORS = (OSError, ValueError, TypeError, EOFError, zlib.error)


def find_files(path: Path) -> DataFiles | None:
    """Its files in a folder, or beside one of them; else None."""
    if path.is_file():
        return _files_directly_in(path.parent) if path.name in FILES.values() else None
    return in_subfolders(path, ("", "svhn", "SVHN"), _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    paths = tuple(folder / name for name in FILES.values() if (folder / name).is_file())
    return DataFiles("mat", folder, paths) if paths else None


def _read(files: DataFiles, options: LoadOptions) -> dict[str, Split]:
    pairs = {}
    for split, name in FILES.items():
        if (path := files.root / name) in files.paths:
            images, labels = read_mat(path)
            pairs[split] = (images.transpose(3, 0, 1, 2), labels % 10)
    return splits_of(pairs, DIGITS, options.own_size)


def read_mat(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """X and y of a MATLAB file. UserError, naming it, where it is damaged or has others."""
    with undamaged(path, _ERRORS), open_data(path, MAX_BYTES) as file:
        most = min(MAX_BYTES, MOST_DEFLATED * path.stat().st_size)
        arrays = read_mat5(file, ("X", "y"), most)
        if arrays.keys() != {"X", "y"}:
            raise ValueError("it does not hold one X and one y")
        for name, dtypes in (("X", ("uint8",)), ("y", ("uint8", "float64"))):
            shape, kind = arrays[name].shape, arrays[name].dtype
            whole = len(shape) == 4 and shape[:3] == (32, 32, 3) and shape[3]
            if kind not in dtypes or (name == "X" and not whole):
                raise ValueError(f"its {name} is {kind} of shape {shape}, X has (32, 32, 3, N)")
        return arrays["X"], arrays["y"]


SVHN = Published(
    name="svhn",
    title="SVHN",
    layout="SVHN (train_32x32.mat and test_32x32.mat)",
    find=find_files,
    read=_read,
    downloads={
        "train_32x32.mat": (
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        "test_32x32.mat": (
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    },
    counts={"train": 73_257, "test": 26_032},
)
