"""Arrays of .npy files, also inside .npz archives, checked by their header before any is read."""

from __future__ import annotations

import math
import sys
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from leanres.errors import UserError, printable, undamaged
from leanres.io import MIB, MOST_DEFLATED, Readable, open_data, read_exactly

MAX_BYTES = 16_384 * MIB  # of a file, and of each array: MedMNIST of 224 pixels has 13 GB
MAX_ARRAYS = 100
_DAMAGED = (ValueError, KeyError, EOFError, OSError, RuntimeError, SyntaxError, RecursionError,
            NotImplementedError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
            TypeError, OverflowError)  # fmt: skip


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file. UserError, naming the file, where it is damaged or too large."""
    with undamaged(path, _DAMAGED), open_data(path, MAX_BYTES) as file:
        return _read_array(file, path.stat().st_size)


def map_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped: of any size, read where it is used. UserError as above."""
    with undamaged(path, _DAMAGED):
        with open_data(path, sys.maxsize) as file:
            _read_header(file, path.stat().st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def npz_shapes(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, tuple[int, ...]]:
    """The arrays in an .npz file: name -> shape. UserError where it is damaged."""
    found = {}
    with (
        undamaged(path, _DAMAGED),
        open_data(path, max_bytes) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if not 0 < len(members) <= MAX_ARRAYS:
            came = f"{path} holds {len(members)} arrays"
            raise UserError(f"{came}: give an .npz of 1 to {MAX_ARRAYS}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            with undamaged(f"{path} ({name})", _DAMAGED), archive.open(member) as content:
                found[name], *_ = _parse_header(content)
    return found


def read_npz(
    path: Path, names: Iterable[str], max_bytes: int = MAX_BYTES
) -> dict[str, NDArray[Any]]:
    """The arrays of these names, of at most `max_bytes` each.

    UserError, naming the file, for one that is damaged or too large.
    """
    found = {}
    with (
        undamaged(path, _DAMAGED),
        open_data(path, max_bytes) as file,
        zipfile.ZipFile(file) as archive,
    ):
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            with undamaged(f"{path} ({name})", _DAMAGED), archive.open(member) as content:
                if member.file_size > max_bytes:
                    raise UserError(
                        f"{path} ({printable(name)}) unpacks to {member.file_size:,} bytes: give"
                        f" one of at most {max_bytes // MIB:,} MiB"
                    )
                if member.file_size > MOST_DEFLATED * (member.compress_size + 1):
                    raise ValueError("it says that it is larger than it can be")
                found[name] = _read_array(content, member.file_size)
    return found


def _read_array(file: Readable, size: int) -> NDArray[Any]:
    """The array of a .npy file of `size` bytes. ValueError where its header does not fit that."""
    shape, by_columns, dtype = _read_header(file, min(size, MAX_BYTES))
    array: NDArray[Any] = read_exactly(file, math.prod(shape) * dtype.itemsize).view(dtype)
    if file.read(1):
        raise ValueError(f"it has more bytes than its header says: {dtype} of shape {shape}")
    return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)


def _read_header(file: Readable, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype. ValueError if they do not fit `size` bytes.

    numpy allocates what the header says before it reads; and it would unpickle objects.
    """
    shape, by_columns, dtype = _parse_header(file)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise ValueError(f"it holds {dtype}: give numbers or text")
    exact = math.prod(shape) * dtype.itemsize  # of Python's integers: no overflow
    if any(side < 0 for side in shape) or exact > size:
        raise ValueError(f"its header says {dtype} of shape {shape}, but it has {size:,} bytes")
    return shape, by_columns, dtype


def _parse_header(file: Readable) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    parse: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers that Python 2 wrote
        return parse(file)  # type: ignore[no-any-return]
