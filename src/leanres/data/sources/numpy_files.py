"""Arrays of .npy files, also inside .npz archives, checked by their header before any is read."""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from leanres.errors import UserError, first_line, printable
from leanres.io import MIB, Readable, open_data, read_exactly

MAX_BYTES = 16_384 * MIB  # of a file, and of each array: MedMNIST of 224 pixels has 13 GB
MAX_ARRAYS = 100
_MOST_DEFLATED = 1100  # zlib expands a byte to at most 1,032
_DAMAGED = (ValueError, KeyError, EOFError, OSError, RuntimeError, SyntaxError, RecursionError,
            NotImplementedError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
            TypeError, OverflowError)  # fmt: skip


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file. UserError, naming the file, where it is damaged or too large."""
    try:
        with open_data(path, MAX_BYTES) as file:
            return _read_array(file, path.stat().st_size)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} is truncated or corrupt: {first_line(error)}") from None


def npz_names(path: Path) -> dict[str, int]:
    """The arrays in an .npz file: name -> size in bytes. UserError where it is damaged."""
    try:
        with open_data(path, MAX_BYTES) as file, zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} is truncated or corrupt: {first_line(error)}") from None
    if not 0 < len(members) <= MAX_ARRAYS:
        raise UserError(f"{path} holds {len(members)} arrays: give an .npz of 1 to {MAX_ARRAYS}")
    return {m.filename.removesuffix(".npy"): m.file_size for m in members}


def read_npz(path: Path, names: Mapping[str, object]) -> dict[str, NDArray[Any]]:
    """The arrays of these names. UserError, naming the file, for one that is damaged."""
    found, name = {}, ""
    try:
        with open_data(path, MAX_BYTES) as file, zipfile.ZipFile(file) as archive:
            for name in names:
                member = archive.getinfo(f"{name}.npy")
                if member.file_size > _MOST_DEFLATED * (member.compress_size + 1):
                    raise ValueError("it says that it is larger than it can be")
                with archive.open(member) as content:
                    found[name] = _read_array(content, member.file_size)
    except UserError:
        raise
    except _DAMAGED as error:
        where = f"{path} ({printable(name)})" if name else str(path)
        raise UserError(f"{where} is truncated or corrupt: {first_line(error)}") from None
    return found


def _read_array(file: Readable, size: int) -> NDArray[Any]:
    """The array of a .npy file of `size` bytes. ValueError where its header does not fit that.

    numpy allocates what the header says before it reads; and it would unpickle objects.
    """
    version = npy.read_magic(file)
    read_header: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers that Python 2 wrote
        shape, by_columns, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise ValueError(f"it holds {dtype}: give numbers or text")
    count = math.prod(shape)  # exact, whatever the header says
    if any(side < 0 for side in shape) or count * dtype.itemsize > min(size, MAX_BYTES):
        raise ValueError(f"its header says {dtype} of shape {shape}, but it has {size:,} bytes")
    array: NDArray[Any] = read_exactly(file, count * dtype.itemsize).view(dtype)
    if file.read(1):
        raise ValueError(f"it has more bytes than its header says: {dtype} of shape {shape}")
    return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)
