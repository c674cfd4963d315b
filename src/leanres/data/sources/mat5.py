"""Arrays of numbers in a MATLAB file, format 5: every size in it is checked before it is believed.

https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf. scipy's reader takes sizes as they
come: a damaged file ended the process by a signal (8 of 400 damaged ones).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanres.io import MIB, Readable, read_exactly

_HEADER = 128  # bytes: text, then the version and the order of bytes
_MATRIX, _COMPRESSED = 14, 15
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8",
            15: "u8"}  # fmt: skip
_COMPLEX = 0x800  # a flag beside the class


class _Element(NamedTuple):
    """A tagged piece of a file; content is that of a small element, which is in its tag."""

    kind: int
    size: int
    content: bytes | None


class _Inflated:
    """What a zlib stream of `size` bytes unpacks to, piece by piece."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self._zlib = file, size, zlib.decompressobj()

    def read(self, size: int = MIB, /) -> bytes:
        """Up to `size` bytes; none at the end of the stream."""
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, MIB))
                self._left -= len(packed)
            piece = self._zlib.decompress(packed, size)
            if piece or not packed:
                return piece
        return b""

    def end(self) -> None:
        """ValueError or zlib.error unless it ends here: its checksum is at its end."""
        if self.read(1) or not self._zlib.eof:
            raise ValueError("a compressed element does not end with its array")


def read_mat5(file: BinaryIO, names: tuple[str, ...], most: int) -> dict[str, NDArray[Any]]:
    """The arrays of these names, in Fortran order; those that are not there are left out.

    ValueError, EOFError or zlib.error for a damaged file, and for an array that is none of real
    numbers or has more than `most` bytes.
    """
    order = _byte_order(file)
    size, found = file.seek(0, 2), dict[str, NDArray[Any]]()
    start = _HEADER
    while start < size and len(found) < len(names):
        file.seek(start)
        tag = _tag(file, order)
        start += 8 + tag.size
        if tag.content is not None or start > size:
            raise ValueError("an element is longer than the file")
        stream: Readable = file
        if tag.kind == _COMPRESSED:
            stream = _Inflated(file, tag.size)
            tag = _tag(stream, order)
        if tag.kind != _MATRIX:
            raise ValueError(f"an element of type {tag.kind}, where arrays are expected")
        for name, array in _matrix(stream, order, names, most):
            if name in found:
                raise ValueError(f"it has two arrays {name}")
            found[name] = array
            if isinstance(stream, _Inflated):
                stream.end()
    return found


def _byte_order(file: BinaryIO) -> str:
    header = file.read(_HEADER)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None or header[124:126] not in (b"\0\1", b"\1\0"):
        raise ValueError("it is no MATLAB file of format 5 (in MATLAB: save -v7)")
    return order


def _tag(stream: Readable, order: str) -> _Element:
    raw = read_exactly(stream, 8).tobytes()
    first, size = np.frombuffer(raw, f"{order}u4").tolist()
    if small := first >> 16:
        if small > 4:
            raise ValueError("a small element has more than 4 bytes")
        return _Element(first & 0xFFFF, small, raw[4 : 4 + small])
    return _Element(first, size, None)


def _numbers(stream: Readable, order: str, most: int) -> NDArray[Any]:
    """The numbers of the next element, with at most `most` bytes, and what pads it."""
    kind, size, content = _tag(stream, order)
    if kind not in _STORED or size > most:
        raise ValueError(f"an element of type {kind} with {size:,} bytes")
    dtype = np.dtype(order + _STORED[kind])
    if size % dtype.itemsize:
        raise ValueError(f"{size:,} bytes of numbers of {dtype.itemsize}")
    if content is not None:
        return np.frombuffer(content, dtype)
    numbers = read_exactly(stream, size).view(dtype)
    read_exactly(stream, -size % 8)
    return numbers


def _matrix(
    stream: Readable, order: str, names: tuple[str, ...], most: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The name and the array of an element of type matrix, where it is one of `names`."""
    flags = _numbers(stream, order, 8).tolist()
    shape = _numbers(stream, order, 4 * 32).tolist()
    name = _numbers(stream, order, 64).tobytes().decode("latin-1")
    if name not in names:
        return
    kind = _CLASSES.get(flags[0] & 0xFF) if flags else None
    if kind is None or flags[0] & _COMPLEX:
        raise ValueError(f"its {name} is no array of real numbers")
    values = _numbers(stream, order, most)
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"its {name} has shape {tuple(shape)}, but {len(values):,} numbers")
    yield name, values.astype(kind, copy=False).reshape(shape, order="F")
