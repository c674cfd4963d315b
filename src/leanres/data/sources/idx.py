"""IDX files, also compressed by gzip: MNIST, Fashion-MNIST, and others with the same names.

Format: http://yann.lecun.com/exdb/mnist: two zero bytes, the type (8: uint8), the number of
dimensions, each dimension as a big-endian uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanres.data.sources.cache import cached
from leanres.data.sources.published import Published, in_subfolders
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Dataset, Split, splits_of
from leanres.errors import UserError, named, undamaged
from leanres.io import MIB, MOST_DEFLATED, Readable, open_data, read_exactly

LAYOUT = "IDX files (train-images-idx3-ubyte, also .gz)"
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip
DIGITS = tuple("0123456789")
MAX_BYTES = 4096 * MIB
_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}


def load_idx(options: LoadOptions) -> Dataset:
    """Any images in IDX files in the folder `options.path`; numbers are the class names."""
    files = None if options.path is None else find_idx(options.path)
    if files is None:
        raise UserError(f"{options.path or 'idx'} has no IDX files; give a folder with {LAYOUT}")

    def decode() -> Dataset:
        with named(files.root):
            return Dataset.of("idx", _read(files, options), source=str(files.root))

    return cached("idx", files.root, files.paths, [options.own_size], options.cache, decode)


def find_idx(path: Path) -> DataFiles | None:
    """The IDX files in a folder, or beside one of them; None where there are none."""
    if path.is_file():
        return _files_directly_in(path.parent) if _NAME.fullmatch(path.name) else None
    return in_subfolders(path, ("", "raw"), _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    paths = tuple(sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)))
    return DataFiles("idx", folder, paths) if paths else None


def _read(
    files: DataFiles, options: LoadOptions, classes: tuple[str, ...] | None = None
) -> dict[str, Split]:
    """The splits. UserError naming the file that is missing or damaged."""
    found: dict[str, dict[str, Path]] = {}
    for path in files.paths:
        split, kind, _ = path.name.replace(".idx", "-idx").split("-", 2)
        found.setdefault(_SPLITS[split], {}).setdefault(kind, path)
    for split, paths in found.items():
        if missing := {"images", "labels"} - paths.keys():
            there = next(iter(paths.values())).name
            raise UserError(f"{files.root} has {there}, but no {split} {missing.pop()}: add them")
    pairs = {
        split: (read_idx(paths["images"], 3), read_idx(paths["labels"], 1))
        for split, paths in sorted(found.items(), reverse=True)
    }
    return splits_of(pairs, classes, options.own_size)


def read_idx(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """The array in an IDX file, whose header has to fit its length. UserError, naming the file."""
    damages = (OSError, EOFError, ValueError, zlib.error)
    with undamaged(path, damages), open_data(path, MAX_BYTES) as raw:
        file: Readable = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        zeros, kind, dims = struct.unpack(">HBB", read_exactly(file, 4).tobytes())
        if (zeros, kind, dims) != (0, 8, num_dims):
            raise ValueError(f"it is no IDX file of uint8 in {num_dims} dimensions")
        shape = struct.unpack(f">{dims}I", read_exactly(file, 4 * dims).tobytes())
        if (size := math.prod(shape)) > MOST_DEFLATED * path.stat().st_size:
            raise ValueError(f"its header says {size:,} bytes")
        content = read_exactly(file, size)
        if file.read(1):
            raise ValueError(f"it has more bytes than its header says, {size:,}")
    return content.reshape(shape)


def _published(
    name: str, title: str, folders: Iterable[str], classes: tuple[str, ...], url: str, sums: str
) -> Published:
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    names = [f"{file}-ubyte.gz" for file in files]
    return Published(
        name=name,
        title=title,
        layout=f"{title} (train-images-idx3-ubyte, ..., also .gz)",
        find=partial(in_subfolders, names=tuple(folders), find=_files_directly_in),
        find_given=find_idx,
        read=partial(_read, classes=classes),
        downloads={n: (url + n, sha256) for n, sha256 in zip(names, sums.split(), strict=True)},
        counts={"train": 60_000, "test": 10_000},
        size=28,
    )


MNIST = _published(
    "mnist",
    "MNIST",
    ("mnist", "MNIST/raw", "MNIST"),
    DIGITS,
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    """440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6""",
)
FASHION_MNIST = _published(
    "fashion-mnist",
    "Fashion-MNIST",
    ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    FASHION,
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    """3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
    a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
    346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
    67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5""",
)
