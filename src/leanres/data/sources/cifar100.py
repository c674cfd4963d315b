"""CIFAR-100, with its 100 fine or its 20 coarse classes: python or binary, or an archive of them.

Layouts: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leanres.data.arrays import images_of
from leanres.data.sources.archive import is_archive_of, read_contents
from leanres.data.sources.batch_pickle import PickledArray, as_text, unpickle_dict
from leanres.data.sources.published import Published, in_subfolders
from leanres.data.sources.source import DataFiles, LoadOptions
from leanres.data.split import Split
from leanres.errors import UserError, first_line

PYTHON_FILES = ("train", "test", "meta")
BINARY_FILES = ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
ARCHIVES = ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz")
_SUBFOLDERS = ("", "cifar-100-python", "cifar-100-binary", "cifar100")
_PIXELS = 3072  # of an image; a binary record has two labels before them: coarse, fine
_MAX_FILE, _MAX_ARCHIVE = 250_000_000, 500_000_000  # train has 155 MB, an archive 186 MB

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, 3072), (N,)


def find_files(path: Path) -> DataFiles | None:
    """The files of CIFAR-100 at `path`, which is a folder, its parent, or an archive; else None."""
    if is_archive_of(path, ARCHIVES, (*PYTHON_FILES, *BINARY_FILES)):
        return DataFiles("archive", path.parent, (path,))
    return in_subfolders(path, _SUBFOLDERS, _files_directly_in)


def _files_directly_in(folder: Path) -> DataFiles | None:
    for kind, names in (("python", PYTHON_FILES), ("binary", BINARY_FILES)):
        paths = tuple(folder / name for name in names)
        if all(path.is_file() for path in paths):
            return DataFiles(kind, folder, paths)
    archives = [folder / name for name in ARCHIVES if (folder / name).is_file()]
    return DataFiles("archive", folder, tuple(archives[:1])) if archives else None


def _read(files: DataFiles, options: LoadOptions, kind: str) -> dict[str, Split]:
    """The splits with labels of a kind, fine or coarse. UserError naming a file that is damaged."""
    wanted = (*PYTHON_FILES, *BINARY_FILES)
    contents, where = read_contents(files, wanted, _MAX_FILE, _MAX_ARCHIVE)
    is_python = "train" in contents
    if missing := {*(PYTHON_FILES if is_python else BINARY_FILES)} - contents.keys():
        raise UserError(f"{where / min(missing)} is missing; fetch CIFAR-100 again")
    parse = _parse_python if is_python else _parse_binary
    classes = _class_names(contents, where, kind)
    splits = {}
    for name in ("train", "test"):
        file = name if is_python else f"{name}.bin"
        pixels, labels = parse(contents[file], str(where / file), kind)
        images = images_of(pixels.reshape(-1, 3, 32, 32), size=options.own_size)
        splits[name] = Split(images, torch.from_numpy(labels), classes)
    return splits


def _class_names(contents: dict[str, bytes], where: Path, kind: str) -> tuple[str, ...]:
    if "meta" in contents:
        listed = unpickle_dict(contents["meta"], str(where / "meta")).get(f"{kind}_label_names")
        names = [as_text(name) for name in listed] if isinstance(listed, list) else []
    else:
        names = contents[f"{kind}_label_names.txt"].decode("utf-8", "replace").split()
    if len(names) != (fits := 100 if kind == "fine" else 20):
        raise UserError(f"{where} names {len(names)} {kind} classes, not {fits}: fetch it again")
    return tuple(names)


def _parse_python(data: bytes, name: str, kind: str) -> Labelled:
    fields = unpickle_dict(data, name)
    array, labels = fields.get("data"), fields.get(f"{kind}_labels")
    if not isinstance(array, PickledArray) or not isinstance(labels, list):
        raise UserError(f"{name} lacks 'data' or '{kind}_labels': it is no file of CIFAR-100")
    try:
        pixels, numbers = array.matrix(), np.array(labels)
        if pixels.shape != (len(numbers), _PIXELS) or numbers.dtype.kind != "i":
            raise ValueError(f"its images are {pixels.shape}, its labels {numbers.shape}")
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is corrupt: {first_line(error)}") from None
    return pixels, numbers.astype(np.int64)


def _parse_binary(data: bytes, name: str, kind: str) -> Labelled:
    if not data or len(data) % (_PIXELS + 2):
        raise UserError(f"{name} has {len(data):,} bytes, no multiple of 3,074: fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, _PIXELS + 2)
    return records[:, 2:], records[:, int(kind == "fine")].astype(np.int64)


CIFAR100 = Published(
    name="cifar100",
    title="CIFAR-100",
    layout="CIFAR-100 (python or binary, or their .tar.gz)",
    find=find_files,
    read=partial(_read, kind="fine"),
    downloads={
        ARCHIVES[1]: (
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        )
    },
    md5={
        ARCHIVES[0]: "eb9058c3a382ffc7106e4002c42a8d85",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    counts={"train": 50_000, "test": 10_000},
)
COARSE = replace(CIFAR100, name="cifar100-coarse", read=partial(_read, kind="coarse"))
