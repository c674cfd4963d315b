"""What the tests of shipping share: one trained network and images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from leanres.data.split import Dataset
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.fit import fit
from leanres.training.device import CPU
from leanres.training.recipes import RECIPES


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A small network that has learned the digits, with val images held out."""
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = replace(RECIPES["digits"], model=SpeedNetConfig((8, 16)), epochs=3)
    assert fit(folder, recipe, digits, CPU("cpu", "float32", compiled=False))["accuracy"] > 0.8
    return folder


@pytest.fixture(scope="session")
def images(digits: Dataset) -> Tensor:
    """The test images of the digits, uint8 (360, 3, 32, 32)."""
    assert digits.test is not None
    return digits.test.images
