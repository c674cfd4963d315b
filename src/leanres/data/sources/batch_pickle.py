"""A restricted reader for the pickles of CIFAR-10: nothing in them is imported or executed.

A pickle may name any importable function and call it. `_BatchUnpickler` builds only dicts, lists,
strings, numbers and bytes. Of the globals that an official batch names, numpy's are replaced by
`PickledArray`, which only keeps what it is given; any other global is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanres.errors import UserError, first_line


class PickledArray:
    """Replaces numpy.ndarray and numpy.dtype: keeps the arguments and the pickled state."""

    arguments: tuple[Any, ...] = ()
    state: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def matrix(self) -> NDArray[np.uint8]:
        """The array of uint8 in row-major order; ValueError or TypeError for any other."""
        _, shape, dtype, is_fortran, content = self.state
        is_uint8 = isinstance(dtype, PickledArray) and dtype.arguments[:1] in (("u1",), (b"u1",))
        if not is_uint8 or is_fortran:
            raise ValueError("its array is not uint8 in row-major order")
        return np.frombuffer(content, np.uint8).reshape(shape)


_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledArray,
    ("_codecs", "encode"): str.encode,  # how Python 3 pickles bytes at protocol 2
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
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
