"""A restricted reader for the pickles of CIFAR-10: nothing in them is imported or executed.

A pickle may name any importable function and call it. `_BatchUnpickler` builds only dicts, lists,
strings, numbers and byte arrays. The five globals that an official batch names are replaced by
inert classes that keep the data; any other global is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanres.errors import UserError, first_line


class PickledArray:
    """Replaces numpy.ndarray: keeps the pickled state, and checks it in `matrix`."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def matrix(self) -> NDArray[np.uint8]:
        """(rows, columns) uint8, row-major; ValueError for any other array."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _PickledDtype) or dtype.code != "u1" or fortran:
            raise ValueError("its array is not uint8 in row-major order")
        return np.frombuffer(raw, np.uint8).reshape(shape)


class _PickledDtype:
    """Replaces numpy.dtype: keeps the type code. (numpy warns about the flags of 2009's files.)"""

    def __init__(self, code: bytes | str = "", *_: object) -> None:
        self.code = as_text(code)

    def __setstate__(self, state: object) -> None:
        """Ignored: byte order and field layout mean nothing for one byte."""


class _EncodedBytes(bytes):
    """Replaces `_codecs.encode(text, "latin1")`: how Python 3 pickles bytes at protocol 2."""

    def __new__(cls, text: str, encoding: str = "latin1") -> _EncodedBytes:
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        """Ignored, so that a pickle cannot set attributes."""


_REPLACEMENTS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _EncodedBytes,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _REPLACEMENTS:
            raise UserError(f"names {module}.{name}, which no CIFAR-10 batch needs: refused")
        return _REPLACEMENTS[module, name]


def unpickle_dict(data: bytes, name: str) -> dict[str, Any]:
    """The dict pickled in the file `name`, with str keys whichever Python wrote it.

    UserError, naming the file, for a foreign global or a damaged pickle.
    """
    try:
        found = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{name} {error}; use the official file") from None
    except Exception as error:  # a damaged pickle fails with almost any exception
        raise UserError(f"{name} is truncated or corrupt: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a {type(found).__name__}, not the dict of a CIFAR-10 batch")
    return {as_text(key): value for key, value in found.items()}


def as_text(value: bytes | str) -> str:
    """A str from either of Python 2's and Python 3's strings."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
