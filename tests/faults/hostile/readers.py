"""Data files of every layout with damaged headers, and headers that claim far too much."""

from __future__ import annotations

import io
import random
import struct
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hostile.cases import Case, mutated, written
from leanres.data.sources import load_data

sys.path.append(str(Path(__file__).parents[2] / "data" / "sources"))  # outside of pytest
import layouts

READERS = ("npz", "idx", "svhn", "stl10", "cifar10.1", "cifar100", "parquet", "table")
_HEAD = 400  # bytes: a header at the beginning or the end


def read_file(name: str, path: Path, file: Path, content: bytes) -> None:
    """Write a file of a data set and load that; what is taken has to be a data set."""
    written(file, content)
    assert load_data(name, path).splits


def readers(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    """`count` damaged files of each layout, and the crafted ones."""
    for name in READERS:
        path = layouts.WRITERS[name](folder / f"of {name}")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix != ".png"]
        whole = {file: file.read_bytes() for file in files}
        for i in range(count):
            file = rng.choice(files)
            content = _damaged(whole[file], rng)
            case = partial(_restored, whole, partial(read_file, name, path, file, content))
            yield Case(f"{name} file", f"{i} {file.name}", case, refused=False)
        for i, (file, content) in enumerate(_crafted(name, files)):
            case = partial(_restored, whole, partial(read_file, name, path, file, content))
            yield Case(f"{name} file", f"crafted {i}", case)


def _restored(whole: dict[Path, bytes], run: partial[None]) -> None:
    """Write every file again, as the one before was damaged, and run."""
    for file, content in whole.items():
        written(file, content)
    run()


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Changed in its first or last bytes, in which headers are, or cut off."""
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content) + 1)]
    if rng.random() < 0.3:
        return content[:-_HEAD] + mutated(content[-_HEAD:], rng)
    return mutated(content[:_HEAD], rng) + content[_HEAD:]


def _crafted(name: str, files: list[Path]) -> Iterator[tuple[Path, bytes]]:
    """Sizes that are not there, objects that would be unpickled, zeros that unpack to gigabytes."""
    huge = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }"
    if name == "idx":
        for count in (2**31, 2**32 - 1, 1_000_000):
            yield files[0], struct.pack(">4I", 0x803, count, 28, 28) + bytes(99)
    if name == "npz":
        for text in (huge % 10**9, huge % 10**30, huge % -5, "[" * 9000, "{'descr': '|O'}"):
            yield files[0], _npz(_npy(text.encode()))
        objects = io.BytesIO()
        np.save(objects, np.array([{}], object), allow_pickle=True)
        yield files[0], _npz(objects.getvalue())
        yield files[0], _npz(_npy((huge % 700_000).encode()) + bytes(700_000 * 3072 // 8))
    if name == "cifar10.1":
        yield files[0], _npy((huge % 10**12).encode())
    if name == "table":
        yield files[0], b"file,label\n" + b'"' + b"a" * 3_000_000
        yield files[0], b"file,label\n" + b"../../../etc/passwd,a\n/etc/passwd,b\n"


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"


def _npz(array: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", array)
        archive.writestr("labels.npy", array)
    return stream.getvalue()
