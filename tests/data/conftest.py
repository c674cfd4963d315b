"""Damaged image files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def header_only_png() -> Callable[[Path, int, int], None]:
    """Writes a PNG that announces its width and height, but holds no pixels."""

    def write(path: Path, width: int, height: int) -> None:
        body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        out = b"\x89PNG\r\n\x1a\n"
        for kind, data in ((b"IHDR", body), (b"IDAT", b"")):
            crc = struct.pack(">I", zlib.crc32(kind + data))
            out += struct.pack(">I", len(data)) + kind + data + crc
        path.write_bytes(out)

    return write
