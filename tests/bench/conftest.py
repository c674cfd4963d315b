from __future__ import annotations

import pytest

from leanres.data.sources import load
from leanres.data.split import Dataset
from leanres.models.speednet import SpeedNetConfig
from leanres.training.engine import Engine
from leanres.training.recipe import Recipe


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture
def engine() -> Engine:
    return Engine("cpu", "float32", compiled=False)


@pytest.fixture
def tiny() -> Recipe:
    """Two phases of size and a stem that freezes, in a second."""
    return Recipe(
        model=SpeedNetConfig((8, 16, 16)),
        epochs=2,
        batch_size=200,
        resolution=((0.0, 0.5), (0.5, 1.0)),
    )
