"""Python batches whose pickles call, nest, share and claim."""

from __future__ import annotations

import os
import pickle
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hostile.cases import MARK, Case, mutated
from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources.cifar10_formats import parse_python_batch

ROWS = 10  # of a batch


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def good_batch(protocol: int) -> bytes:
    pixels = np.zeros((ROWS, 3072), np.uint8)
    return pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(ROWS)]}, protocol)


def field(value: bytes, name: bytes = b"labels") -> bytes:
    """A pickled dict of one field."""
    return b"\x80\x02}U" + bytes([len(name)]) + name + value + b"s."


def batch_with(labels: Any) -> bytes:
    return pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": labels}, 2)


def crafted_pickles(folder: Path) -> Iterator[tuple[str, bytes]]:
    mark = str(folder / MARK)
    for protocol in range(6):
        for call in (Call(os.mkdir, mark), Call(eval, f"__import__('os').mkdir({mark!r})")):
            yield f"call at protocol {protocol}", pickle.dumps({"labels": call}, protocol)
    deep = b")" + b"\x85" * 100_000
    yield "deep tuple as key", b"\x80\x02}" + deep + b"Ns."
    yield "deep tuple", field(deep)
    yield "deep tuple, kept", field(b")" + b"q\x01\x85" * 40_000)
    yield "deep list", field(b"]" * 60_000 + b"a" * 59_999)
    yield "deep dict", field(b"}U\x01a" * 40_000 + b"N" + b"s" * 40_000)
    shared = b")q\x00" + b"".join(b"0" * (i > 0) + b"h\x00h\x00\x86q\x00" for i in range(60))
    yield "2^60 tuples as key", b"\x80\x02}" + shared.replace(b"0", b"") + b"Ns."
    yield "2^60 tuples", field(b")q\x00h\x00" + b"\x86q\x00h\x00" * 60)
    yield "huge integer", field(b"\x8b" + struct.pack("<i", 4_000_000) + b"\x7f" * 4_000_000)
    yield "long integer", field(b"\x8a\xff" + b"\x7f" * 255)
    yield "integer as text", field(b"L" + b"9" * 1_000_000 + b"L\n")
    yield "marks", b"\x80\x02" + b"(" * 140_000 + b"t" * 140_000 + b"."
    yield "nested arrays", field(b"cnumpy\nndarray\nq\x01" + b")R" + b"\x85h\x01\x86R" * 20_000)
    yield "wide", field(b"](" + b"K\x01" * 2_000_000 + b"e")
    yield "claims 2 GB", field(b"T" + struct.pack("<i", 2**31 - 1) + b"x")
    yield "claims 2^63", field(b"\x8e" + struct.pack("<Q", 2**63) + b"x")
    yield "negative length", field(b"T" + struct.pack("<i", -5) + b"x")
    text = b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000
    again = b"c_codecs\nencode\nq\x01" + text + b"q\x02U\x06latin1q\x03"
    yield "encoded again and again", field(again + b"h\x01h\x02h\x03\x86R" * 20_000)
    yield "odd encoding", field(b"c_codecs\nencode\n" + text + b"U\x08punycode\x86R")
    yield "persistent id", field(b"Pname\n")
    yield "extension", field(b"\x82\x01")
    yield "new object", field(b"cnumpy\nndarray\n)\x81")
    yield "instance", field(b"(ios\nsystem\n")
    yield "buffer", field(b"\x97")
    yield "state of a name", field(b"c_codecs\nencode\n(N}U\x07__new__K\x01stb")
    yield "memo that is not", field(b"h\x09")
    yield "empty stack", b"\x80\x02\x85\x85."
    yield "no end", b"\x80\x02}"
    yield "nothing", b""
    for labels in ([3.7] * ROWS, ["a"] * ROWS, ["3"] * ROWS, [True] * ROWS, [None] * ROWS):
        yield f"labels {labels[0]!r}", batch_with(labels)
    for labels in ([10**30] * ROWS, [-1] * ROWS, [10] * ROWS, [1], [[1]] * ROWS, 3, b"1" * ROWS):
        yield f"labels {str(labels)[:20]}", batch_with(labels)
    for shape in ((1 << 40, 1), (-1, 3072), (ROWS, 3071), (), ("a",), (10**30, 2)):
        array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + pickle.dumps(shape, 2)[2:-1]
        state = b"cnumpy\ndtype\nU\x02u1\x85R\x89T" + struct.pack("<i", ROWS * 3072)
        yield f"shape {shape}", field(array + state + bytes(ROWS * 3072) + b"tb", b"data")


def random_program(rng: random.Random) -> bytes:
    """Instructions of a pickle in any order."""
    steps = [bytes([i]) for i in b"()]}tale0123.usRbNqhQjKMJU\x85\x86\x87\x88\x89\x93\x94\x8c\x81"]
    steps += [b"cnumpy\ndtype\n", b"cos\nsystem\n", b"U\x04data", b"K\x01", b"h\x00", b"q\x00"]
    return b"\x80\x02" + b"".join(rng.choices(steps, k=rng.randrange(2, 80))) + b"."


def read_batch(content: bytes) -> None:
    """Parse it; what is taken has to be a batch."""
    formats._ROWS = ROWS
    images, labels = parse_python_batch(content, "batch")
    assert images.shape == (ROWS, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.shape == (ROWS,)
    assert 0 <= labels.min() <= labels.max() <= 9


def pickles(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    for name, content in crafted_pickles(folder):
        yield Case("pickle", name, lambda content=content: read_batch(content))
    good = [good_batch(protocol) for protocol in (2, 3, 4)]
    for i in range(count):
        whole = rng.choice(good)
        start = whole.index(bytes(1000))  # the pixels' bytes are all alike
        content = mutated(whole[: start + 9], rng) + whole[start + 9 :]
        if i % 3 == 0:
            content = random_program(rng)
        elif i % 3 == 1:
            content = whole[: start + 30_700] + mutated(whole[start + 30_700 :], rng)
        yield Case("pickle", f"{i}", lambda content=content: read_batch(content), refused=False)
