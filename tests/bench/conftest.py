from __future__ import annotations

import pytest

from leanres.models.speednet import SpeedNetConfig
from leanres.training.recipe import Recipe


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
