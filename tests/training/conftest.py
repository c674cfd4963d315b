from __future__ import annotations

import pytest

from leanres.models.speednet import SpeedNetConfig
from leanres.training.recipe import Recipe


@pytest.fixture
def small() -> Recipe:
    """Exercises every phase (shrunk images, frozen stem, EMA, mirror, mixes) in 12 steps."""
    return Recipe(
        model=SpeedNetConfig((8, 16, 16)),
        epochs=2,
        batch_size=200,
        resolution=((0.0, 0.5), (0.5, 1.0)),
        augment=(("alternating_flip", {}), ("crop", {"padding": 2}), ("cutout", {"size": 6})),
        mix=(("mixup", {}), ("cutmix", {})),
        ema=0.8,
        val=200,
    )
