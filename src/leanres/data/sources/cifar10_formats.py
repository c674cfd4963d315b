"""Decode CIFAR-10: python and binary batches, archives of them, parquet shards."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from PIL import Image

from leanres.data.sources.archive import read_contents
from leanres.data.sources.batch_pickle import PickledArray, as_text, unpickle_dict
from leanres.data.sources.parquet import named_classes, schema_of
from leanres.data.sources.source import DataFiles, Progress
from leanres.data.split import Split
from leanres.errors import UserError, first_line, undamaged
from leanres.io import read_parquet

_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
CLASSES = ("airplane", "automobile", *_ANIMALS, "ship", "truck")
PYTHON_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BINARY_FILES = tuple(f"{name}.bin" for name in PYTHON_FILES)
SHARD_NAME = re.compile(r"(train|test)-(\d{5})-of-(\d{5})\.parquet")
_ROWS, _PIXELS = 10_000, 3072  # of one official batch
_MAX_FILE = 64_000_000  # a batch has 31 MB
_MAX_ARCHIVE = 400_000_000  # an official one has 186 MB

Pixels = NDArray[np.uint8]  # (N, 3, 32, 32)
Labels = NDArray[np.int64]  # (N,)
CifarBatch = tuple[Pixels, Labels]


CifarFiles = DataFiles  # of kind python, binary, archive or parquet


def read_cifar10(files: CifarFiles, progress: Progress = None) -> tuple[Split, Split]:
    """Decode every file. -> (train, test), (N, 3, 32, 32) each, in the order of the files.

    UserError naming the file and the reason for one that is missing, truncated or corrupt.
    """
    if files.kind == "parquet":
        return _read_parquet(files, progress)
    wanted = (*PYTHON_FILES, *BINARY_FILES, "batches.meta", "batches.meta.txt")
    contents, where = read_contents(files, wanted, _MAX_FILE, _MAX_ARCHIVE)
    is_python = not contents.keys() & set(BINARY_FILES)
    parse = parse_python_batch if is_python else parse_binary_batch
    batches: list[CifarBatch] = []
    for name in PYTHON_FILES if is_python else BINARY_FILES:
        if name not in contents:
            raise UserError(f"{where / name} is missing; put it there or fetch the archive again")
        batches.append(parse(contents[name], str(where / name)))
        if progress:
            progress("reading CIFAR-10", len(batches), 6)
    classes = _class_names(contents, where)
    return _join(batches[:5], classes), _join(batches[5:], classes)


def _join(batches: list[CifarBatch], classes: tuple[str, ...]) -> Split:
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    return Split(torch.from_numpy(images), torch.from_numpy(labels), classes)


def _class_names(contents: dict[str, bytes], where: Path) -> tuple[str, ...]:
    """Names from the meta file; the official ten without one, since it is often left out."""
    names: list[str] = list(CLASSES)
    if "batches.meta.txt" in contents:
        names = contents["batches.meta.txt"].decode("utf-8", "replace").split()
    elif "batches.meta" in contents:
        fields = unpickle_dict(contents["batches.meta"], str(where / "batches.meta"))
        listed = fields.get("label_names")
        names = [as_text(item) for item in listed] if isinstance(listed, list) else []
    if (count := len(names)) != 10:
        raise UserError(f"{where}: its meta file names {count} classes, not 10: fetch it again")
    return tuple(names)


def parse_python_batch(data: bytes, name: str) -> CifarBatch:
    """Parse one pickled batch. -> images (10000, 3, 32, 32), labels (10000,).

    UserError naming the file for a foreign global, a wrong shape, type or label.
    """
    fields = unpickle_dict(data, name)
    array, labels = fields.get("data"), fields.get("labels")
    if not isinstance(array, PickledArray) or not isinstance(labels, list):
        raise UserError(f"{name} lacks 'data' or 'labels': it is no CIFAR-10 batch")
    if not all(type(label) is int for label in labels):
        raise UserError(f"{name} is corrupt: some labels are not whole numbers")
    try:
        pixels, numbers = array.matrix(), np.array(labels, dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is corrupt: {first_line(error)}") from None
    if pixels.shape != (_ROWS, _PIXELS):
        raise UserError(f"{name} holds an array of {pixels.shape}, not ({_ROWS}, {_PIXELS})")
    return pixels.reshape(-1, 3, 32, 32), _checked_labels(numbers, len(pixels), name)


def parse_binary_batch(data: bytes, name: str) -> CifarBatch:
    """Parse one binary batch of 3,073-byte records. -> images (10000, 3, 32, 32), labels (10000,).

    UserError naming the file for a wrong size or label.
    """
    expected = _ROWS * (_PIXELS + 1)
    if len(data) != expected:
        raise UserError(f"{name} has {len(data):,} bytes, not {expected:,}: fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(_ROWS, _PIXELS + 1)
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return pixels, _checked_labels(records[:, 0].astype(np.int64), _ROWS, name)


def _checked_labels(labels: Labels, count: int, name: str) -> Labels:
    if labels.shape != (count,):
        raise UserError(f"{name} has {count} images but labels of shape {labels.shape}")
    if outside := [label for label in labels.tolist() if not 0 <= label <= 9]:
        raise UserError(f"{name} is corrupt: it has label {outside[0]}; labels are 0 to 9")
    return labels


def _read_parquet(files: CifarFiles, progress: Progress) -> tuple[Split, Split]:
    _check_shards(files)
    batches: dict[str, list[CifarBatch]] = {"train": [], "test": []}
    for done, path in enumerate(files.paths, 1):
        batches[path.name.split("-")[0]].append(_read_shard(path))
        if progress:
            progress("decoding CIFAR-10", done, len(files.paths))
    classes = _schema_classes(files.paths[0])
    return _join(batches["train"], classes), _join(batches["test"], classes)


def _check_shards(files: CifarFiles) -> None:
    """UserError for a gap in the numbering of either split: a file is missing."""
    present = {path.name for path in files.paths}
    for split in ("train", "test"):
        total = next((name[-13:-8] for name in present if name.startswith(split)), "00001")
        for i in range(int(total)):
            if (name := f"{split}-{i:05d}-of-{total}.parquet") not in present:
                raise UserError(f"{files.root / name} is missing; put the file there")


def _read_shard(path: Path) -> CifarBatch:
    with undamaged(path, (pyarrow.ArrowException, OSError, KeyError, ValueError)):
        table = read_parquet(path, _MAX_ARCHIVE, ["img", "label"])
        blobs = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_numpy().astype(np.int64)
    pixels = [_decode_png(blob, path, row) for row, blob in enumerate(blobs)]
    images = np.array(pixels, np.uint8).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), _checked_labels(labels, len(blobs), str(path))


def _decode_png(blob: bytes, path: Path, row: int) -> NDArray[np.uint8]:
    """(32, 32, 3) uint8. Two threads decode no faster than one: the work per image is small."""
    try:
        with Image.open(io.BytesIO(blob), formats=("PNG",)) as image:
            if image.size != (32, 32):
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels, not 32x32")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise UserError(f"{path} is corrupt: image in row {row}: {first_line(error)}") from None


def holds_cifar10(shard: Path) -> bool:
    """Whether a parquet shard has CIFAR-10's columns and ten classes, or cannot be read."""
    try:
        names = schema_of(shard).names
    except UserError:
        return True  # reading it will say what is wrong
    return set(names) == {"img", "label"} and len(_named_classes(shard) or CLASSES) == 10


def _named_classes(shard: Path) -> tuple[str, ...]:
    """Class names from the schema's `huggingface` entry; none without one."""
    return named_classes(schema_of(shard)).get("label", ())


def _schema_classes(path: Path) -> tuple[str, ...]:
    """Class names from the schema; the official ten without any."""
    names = _named_classes(path)
    return names if len(names) == 10 else CLASSES
