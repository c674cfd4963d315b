from __future__ import annotations

from functools import partial

import pytest

from leanres.models.speednet import SpeedNetConfig
from leanres.training.device import matrix_rate
from leanres.training.recipe import Recipe


@pytest.fixture(autouse=True)
def _small_product(monkeypatch):
    """A 64th of the product: where bfloat16 is emulated, the whole takes three seconds."""
    monkeypatch.setattr("leanres.bench.step.matrix_rate", partial(matrix_rate, n=1024))


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
