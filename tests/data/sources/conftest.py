"""Small data sets on disk, and a cache of their own; no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanres.data.sources import cifar10_formats as formats
from leanres.data.sources import published
from leanres.errors import UserError

ROWS = 20  # of a binary batch


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, no data set by the user, no network."""
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LEANRES_DATA", raising=False)
    monkeypatch.setattr(formats, "_ROWS", ROWS)

    def offline(*_: object, **__: object) -> None:
        raise UserError("cannot download: no network in this test")

    monkeypatch.setattr(published, "download", offline)
    return tmp_path / "cache"


@pytest.fixture
def write_binary() -> Callable[..., Path]:
    """Writes six binary batches of 20 random images."""

    def write(folder: Path, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name in formats.BINARY_FILES:
            records = rng.integers(0, 256, (ROWS, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            (folder / name).write_bytes(records.tobytes())
        return folder

    return write


@pytest.fixture
def write_images() -> Callable[[Path], Path]:
    """Writes five random images of each of two classes."""

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
        return root

    return write
