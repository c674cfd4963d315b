"""Decoded images on disk, so that a data set is decoded once.

One file per data set: the uint8 images and the labels of each split as safetensors, and JSON text
that describes them, with one CRC-32 over everything. CRC-32 finds every single flipped bit and any
truncation, and takes 0.1 s for the 184 MB of CIFAR-10, where sha256 takes 0.5 s: it guards against
a failing disk, not against an attacker.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from leanres.data.split import Dataset, Split
from leanres.errors import first_line
from leanres.io import MIB, make_folder, open_file, parse_json, written

_FORMAT = 6  # of the cache files: raise it when decoding changes, and all files are rebuilt
_MAX_BYTES = 65_536 * MIB
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def cached(
    source: str,
    root: Path,
    files: Iterable[Path],
    options: list[Any],
    cache: Path,
    decode: Callable[[], Dataset],
    whites: Mapping[str, float] | None = None,
) -> Dataset:
    """The data set from its cache file, else decoded and then cached.

    The cache file's name depends on what the decoded images depend on: the options of decoding, and
    the name, size and modification time of each file of the source. `whites` that were asked for
    have a file beside the one of the data's own. A damaged cache file, or one that cannot be
    written, is no error: a note of the data set says so.
    """
    stats = [(str(path.relative_to(root)), *_size_and_mtime(path)) for path in files]
    asked = json.dumps(sorted(whites.items())) if whites else ""
    place = os.fsencode(root.resolve()) + asked.encode()
    prefix = f"{source}-{_sha256(place)[:8]}-"  # of all files for this root and these whites
    key = json.dumps([_FORMAT, source, options, stats])
    file, notes = cache / f"{prefix}{_sha256(key.encode())[:24]}.safetensors", []
    try:
        return read_cache_file(file)
    except (FileNotFoundError, NotADirectoryError):
        pass  # writing it says what is in the folder's place
    except READ_ERRORS as error:
        notes.append(f"the cache file {file} was damaged ({first_line(error)}) and is rebuilt")
    dataset = decode()
    try:
        write_cache_file(file, dataset)
        for outdated in {*cache.glob(f"{prefix}*.safetensors")} - {file}:
            outdated.unlink(missing_ok=True)
        dataset = replace(read_cache_file(file), notes=dataset.notes)  # mapped, not in memory
    except READ_ERRORS as error:
        problem = first_line(error)
        where = "" if str(cache) in problem else f" in {cache}"
        notes.append(f"the decoded images could not be cached{where} ({problem})")
    return replace(dataset, notes=(*dataset.notes, *notes))


def _size_and_mtime(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)  # missing: decoding will report it
    return (stat.st_size, stat.st_mtime_ns)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def all_cached(source: str, cache: Path) -> Iterator[tuple[Path, Dataset]]:
    """Every undamaged cache file of a source with its data set, the newest first."""
    files = cache.glob(f"{source}-*.safetensors")
    for file in sorted(files, key=lambda file: -_size_and_mtime(file)[1]):
        try:
            dataset = read_cache_file(file)
        except READ_ERRORS:
            continue
        if dataset.name == source:  # the name of another may begin alike
            yield file, dataset


def read_cache_file(file: Path) -> Dataset:
    """The data set in `file`. FileNotFoundError, or another of READ_ERRORS if it is damaged."""
    open_file(file, _MAX_BYTES).close()
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    tensors = load_file(file)
    if _checksum(metadata["about"], tensors) != metadata["crc"]:
        raise ValueError("its checksum is wrong")
    about = parse_json(metadata["about"])
    splits = {
        name: Split(
            tensors[f"{name}.images"],
            tensors[f"{name}.labels"],
            tuple(about["classes"]),
            _read_files(tensors[f"{name}.files"]),
        )
        for name in about["splits"]
    }
    train = splits.get("train") or next(iter(splits.values())).subset([])
    parts = (train, splits.get("val"), splits.get("test"))
    notes = tuple(about["notes"])
    return Dataset(about["name"], *parts, notes, about["source"], about["grows"], about["whites"])


def _files_tensor(files: tuple[str, ...]) -> Tensor:
    """File names, one a line, as uint8 text: JSON would hold a copy of a million of them."""
    return torch.from_numpy(np.frombuffer("\n".join(files).encode(), np.uint8).copy())


def _read_files(text: Tensor) -> tuple[str, ...]:
    return tuple(text.numpy().tobytes().decode().split("\n")) if len(text) else ()


def _checksum(about: str, tensors: dict[str, Tensor]) -> str:
    """The CRC-32 of the description, and of each tensor's name and content, in hexadecimal."""
    crc = zlib.crc32(about.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def write_cache_file(file: Path, dataset: Dataset) -> None:
    """Write a data set to `file`, which `read_cache_file` reads. OSError where that fails."""
    tensors = {f"{name}.images": split.images for name, split in dataset.splits.items()}
    tensors |= {f"{name}.labels": split.labels for name, split in dataset.splits.items()}
    tensors |= {f"{n}.files": _files_tensor(split.files) for n, split in dataset.splits.items()}
    fields = {
        name: getattr(dataset, name) for name in ("name", "source", "notes", "grows", "whites")
    }
    about = json.dumps(fields | {"classes": dataset.train.classes, "splits": [*dataset.splits]})
    make_folder(file.parent)
    with written(file) as opened:
        for piece in _pieces(tensors, {"about": about, "crc": _checksum(about, tensors)}):
            opened.write(piece)


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file, which is a header and then the tensors, without a copy of them.

    https://huggingface.co/docs/safetensors: "Format".
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: -entry[1].element_size()):
        start, end = end, end + tensor.nbytes
        kind = {torch.uint8: "U8", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors of 8 bytes begin at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for name in [*header][1:]:
        yield tensors[name].numpy().data
