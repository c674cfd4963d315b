"""A reader for the pickles of CIFAR-10 and CIFAR-100, which imports and executes nothing.

A pickle is a program: it may call any importable function, and even without that it may ask for
more memory, time or stack than there is. So `pickle` does not run it. `_Reader` knows only what an
official batch, and one that numpy wrote again, consist of: dicts with strings as keys, flat lists,
tuples in tuples, strings, small integers, and arrays whose parts are kept as they come.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanres.errors import UserError, first_line, printable

MAX_STEPS = 600_000  # CIFAR-100's train takes 200,000, with its names as bytes 450,000
FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
GLOBALS = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",  # how Python 3 pickles bytes at protocol 2
    *FROM_BUFFER,
}


class _Global(str):
    """One of GLOBALS, by its name."""


class PickledArray:
    """What stands for a numpy array or dtype: the arguments of its call, and its state."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def matrix(self) -> NDArray[np.uint8]:
        """The array of uint8 in row-major order; ValueError or TypeError for any other."""
        _, shape, dtype, is_fortran, content = self.state
        is_uint8 = isinstance(dtype, PickledArray) and dtype.arguments[:1] in (("u1",), (b"u1",))
        if not is_uint8 or is_fortran or not isinstance(content, bytes):
            raise ValueError("its array is not uint8 in row-major order")
        return np.frombuffer(content, np.uint8).reshape(shape)


class _Reader:
    """The machine that a pickle is a program for, with the few instructions that a batch needs.

    Any exception means that the program is not a batch's; UserError, that it names a foreign
    global.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.uncoded = data, len(data)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program leaves."""
        for step, (code, argument, _) in enumerate(pickletools.genops(self.data)):
            if step > MAX_STEPS:
                raise ValueError(f"it has more than {MAX_STEPS:,} instructions")
            if code.name == "STOP":
                return self.stack.pop()
            if code.name not in _STEPS:
                raise ValueError(f"no batch needs its instruction {code.name}")
            _STEPS[code.name](self, argument)
        raise ValueError("it has no end")

    def above_mark(self) -> list[Any]:
        """Pop everything pushed since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, count: int) -> list[Any]:
        """Pop the last `count` values."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes more values than it pushed")
        return [self.stack.pop() for _ in range(count)][::-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_int(self, value: int) -> None:
        if value.bit_length() > 63:
            raise ValueError("it has an integer of more than 64 bits")
        self.push(value)

    def push_tuple(self, items: list[Any]) -> None:
        parts = [part for item in items if isinstance(item, tuple) for part in item]
        too_deep = any(isinstance(part, tuple) for part in parts)
        if too_deep or any(isinstance(item, list | dict) for item in items):
            raise ValueError("it has a tuple that holds more than flat tuples")
        self.push(tuple(items))

    def append(self, items: list[Any]) -> None:
        known = self.stack[-1]
        if type(known) is not list or not all(type(item) in (int, str, bytes) for item in items):
            raise ValueError("it has a list that holds more than numbers and strings")
        known.extend(items)

    def set_items(self, items: list[Any]) -> None:
        known, keys, values = self.stack[-1], items[::2], items[1::2]
        if type(known) is not dict or not all(type(key) in (str, bytes) for key in keys):
            raise ValueError("it has a dict with keys that are not strings")
        if any(isinstance(value, dict) for value in values):
            raise ValueError("it has a dict in a dict")
        known.update(zip(keys, values, strict=True))

    def push_global(self, name: str) -> None:
        if name not in GLOBALS:
            named = printable(name.replace(" ", "."))[:100]
            raise UserError(f"names {named}, which no CIFAR batch needs: refused")
        self.push(_Global(name))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise ValueError("it calls something that is not a function")
        if function == "_codecs encode":
            text, encoding = arguments
            self.uncoded -= len(text)
            if type(text) is not str or encoding != "latin1" or self.uncoded < 0:
                raise ValueError("it encodes other text than its own bytes")
            self.push(text.encode("latin1"))
        elif function in FROM_BUFFER:  # how numpy pickles an array at protocol 5
            content, dtype, shape, order = arguments
            self.push(PickledArray((dtype,)))
            self.build((1, shape, dtype, order == "F", content))
        else:
            self.push(PickledArray(arguments))

    def build(self, state: Any) -> None:
        if type(self.stack[-1]) is not PickledArray or type(state) is not tuple:
            raise ValueError("it changes something that is not an array")
        self.stack[-1].state = state


def _constant(value: Any) -> Callable[[_Reader, Any], None]:
    return lambda reader, _: reader.push(value)


def _tuple_of(count: int) -> Callable[[_Reader, Any], None]:
    return lambda reader, _: reader.push_tuple(reader.take(count))


def _remember(reader: _Reader, key: int | None) -> None:
    reader.memo[len(reader.memo) if key is None else key] = reader.stack[-1]


_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda reader, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Reader.push_int),
    **dict.fromkeys(
        ("BINSTRING", "SHORT_BINSTRING"), lambda reader, text: reader.push(text.encode("latin1"))
    ),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"), _Reader.push),
    **dict.fromkeys(
        ("BYTEARRAY8", "BINBYTES8"), lambda reader, content: reader.push(bytes(content))
    ),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda reader, key: reader.push(reader.memo[key])),
    "MARK": lambda reader, _: reader.marks.append(len(reader.stack)),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda reader, _: reader.push_tuple(reader.above_mark()),
    "APPEND": lambda reader, _: reader.append(reader.take(1)),
    "APPENDS": lambda reader, _: reader.append(reader.above_mark()),
    "SETITEM": lambda reader, _: reader.set_items(reader.take(2)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.above_mark()),
    "GLOBAL": _Reader.push_global,
    "STACK_GLOBAL": lambda reader, _: reader.push_global(" ".join(map(str, reader.take(2)))),
    "REDUCE": lambda reader, _: reader.call(*reader.take(2)),
    "BUILD": lambda reader, _: reader.build(*reader.take(1)),
}


def unpickle_dict(data: bytes, name: str) -> dict[str, Any]:
    """The dict pickled in the file `name`, with str keys whichever Python wrote it.

    UserError, naming the file, for a foreign global or a damaged pickle.
    """
    try:
        found = _Reader(data).run()
    except UserError as error:
        raise UserError(f"{name} {error}; use the official file") from None
    except Exception as error:  # a damaged program fails with almost any exception
        raise UserError(f"{name} is truncated or corrupt: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a {type(found).__name__}, not the dict of a CIFAR batch")
    return {as_text(key): value for key, value in found.items()}


def as_text(value: bytes | str) -> str:
    """A str from either of Python 2's and Python 3's strings."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
