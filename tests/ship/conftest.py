"""What the tests of shipping share: one trained network and images."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor

from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.fit import fit
from leanres.ship.export import TARGETS
from leanres.training.device import CPU
from leanres.training.recipes import RECIPES


@pytest.fixture(autouse=True)
def _only_installed_targets(request: pytest.FixtureRequest) -> None:
    """A test of a target is skipped where the target's packages are missing."""
    suffix = getattr(request.node, "callspec", None) and request.node.callspec.params.get("suffix")
    for package in TARGETS[suffix].packages if suffix else ():
        if find_spec(package) is None:
            pytest.skip(f"{suffix} needs {package}: pip install 'leanres[{TARGETS[suffix].extra}]'")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A small network that has learned the digits, with val images held out."""
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = replace(RECIPES["digits"], model=SpeedNetConfig((8, 16)), epochs=3)
    assert fit(folder, recipe, digits, CPU("cpu", "float32", compiled=False))["accuracy"] > 0.8
    return folder


@pytest.fixture(scope="session")
def grey_digits() -> Dataset:
    """The digits as grey images: the whitening of equal colours has filters of any size."""
    return load_data("digits", channels=1)


@pytest.fixture(scope="session")
def grey_run(tmp_path_factory: pytest.TempPathFactory, grey_digits: Dataset) -> Path:
    """A network that has learned the grey digits well enough to be rounded."""
    folder = tmp_path_factory.mktemp("grey") / "run"
    recipe = replace(RECIPES["digits"], model=SpeedNetConfig((16, 32)), epochs=3)
    assert fit(folder, recipe, grey_digits, CPU("cpu", "float32", compiled=False))["accuracy"] > 0.9
    return folder


@pytest.fixture(scope="session")
def images(digits: Dataset) -> Tensor:
    """The test images of the digits, uint8 (360, 3, 32, 32)."""
    assert digits.test is not None
    return digits.test.images
