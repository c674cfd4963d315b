"""Archives with endless names, chained headers, bad sparse maps and false sizes."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.cases import Case, mutated, written
from leanres.data.sources.cifar10_formats import CifarFiles, read_cifar10


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for key, value in more.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def crafted_archives() -> Iterator[tuple[str, bytes]]:
    """Names of archives and their compressed content."""
    long, pax = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE
    zeros = gzip.compress(bytes(1 << 20), 1)
    yield "name of 3 GB", gzip.compress(header("x", 3 << 30, long)) + zeros
    yield "name of 300 MB", gzip.compress(header("x", 300 << 20, long)) + zeros * 300
    yield "batch of 10 GB", gzip.compress(header("data_batch_1", 10 << 30)) + zeros
    yield "bomb", zeros * 600
    for name, content in crafted_headers(long, pax):
        yield name, gzip.compress(content, 1)


def crafted_headers(long: bytes, pax: bytes) -> Iterator[tuple[str, bytes]]:
    for kind in (long, pax, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE):
        yield f"20,000 headers {kind!r}", header("x", 0, kind) * 20_000
    texts = b"30 GNU.sparse.major=1\n", b"9999999999 path=x\n", b"0 a=b\n", b"-5 a=b\n", b"\xff"
    for text in texts:
        yield f"extended {text!r}", header("x", len(text), pax) + text.ljust(512, b"\0")
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n28 GNU.sparse.realsize=9999\n"
    map_ = header("data_batch_1", 512) + b"99999999999\n".ljust(512, b"\0")
    yield "sparse map", header("x", len(sparse), pax) + sparse.ljust(512, b"\0") + map_
    old = bytearray(header("data_batch_1", 512, tarfile.GNUTYPE_SPARSE))
    old[386:482] = b"7" * 96
    yield "old sparse map", bytes(old)
    yield "extended sparse map", header("data_batch_1", 0, b"S") + b"\1" * (512 * 2000)
    yield "negative size", header("data_batch_1", -512)
    yield "size of 2^60", header("data_batch_1", 1 << 60)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"):
        yield f"member of kind {kind!r}", header("data_batch_1", 0, kind, linkname="/etc/passwd")
    yield "traversal", header("../../../data_batch_1", 1) + b"x".ljust(512, b"\0")
    yield "50,000 files", header("x") * 50_000
    yield "noise", random.Random(0).randbytes(10_000)


def archives(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    def case(name: str, content: bytes) -> Case:
        path = folder / "cifar-10-python.tar.gz"
        files = CifarFiles("archive", folder, (path,))

        def read() -> None:
            written(path, content)
            read_cifar10(files)

        return Case("archive", name, read)

    for name, content in crafted_archives():
        yield case(name, content)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("readme", "data_batch_1", "batches.meta"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    plain, packed = whole.getvalue(), gzip.compress(whole.getvalue())
    for i in range(count):
        damaged = mutated(packed, rng) if i % 2 else gzip.compress(mutated(plain, rng))
        yield case(f"{i}", damaged)
