from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from leanres.data.sources import locate
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.checkpoint import saved
from leanres.runs.layout import CHECKPOINTS, HISTORY
from leanres.runs.weights import WEIGHTS
from leanres.training.recipe import Recipe

DIGITS = locate("digits")


@pytest.fixture
def tiny() -> Recipe:
    """Two phases of size and a stem that freezes, in a second."""
    return Recipe(
        model=SpeedNetConfig((8, 16, 16)),
        epochs=2,
        batch_size=200,
        progressive_resizing=((0.0, 0.5), (0.5, 1.0)),
        precision="float32",
    )


@pytest.fixture
def _one_thread():
    """As processes that are told `threads=1`: sums over threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def digest():
    """A run folder -> sha256 of weights, metric rows and the whole last state."""

    def read(folder: Path) -> list[str]:
        state = saved(folder / CHECKPOINTS)[0] / "state.safetensors"
        files = [folder / WEIGHTS, folder / HISTORY, state]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    return read
