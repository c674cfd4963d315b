"""Three small runs, trained once: two seeds of one recipe with val images, and one without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.run import fit
from leanres.training.device import Device
from leanres.training.recipe import Recipe

ENGINE = Device("cpu", "float32", compiled=False)
RECIPE = Recipe(
    model=SpeedNetConfig((8, 16)),
    epochs=3,
    batch_size=200,
    accumulate=1,
    augment=(("crop", {"padding": 2}),),
    progressive_resizing=((0.0, 0.75), (0.6, 1.0)),
    val=200,
)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="session")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs a, b (another seed) and plain (no val, another lr)."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "a", RECIPE, digits, ENGINE)
    fit(folder / "b", replace(RECIPE, seed=1), digits, ENGINE)
    fit(folder / "plain", replace(RECIPE, val=0, lr=0.01), digits, ENGINE)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of the runs that a test may spoil: (name, new name) -> its folder."""

    def copy(name: str = "a", new: str = "") -> Path:
        return Path(shutil.copytree(trained / name, tmp_path / (new or name)))

    return copy
