"""What every test shares: real data where there is some, and a cache of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from leanres.cli import main
from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.models.speednet import SpeedNetConfig
from leanres.training.device import CPU, Device
from leanres.training.recipe import Recipe

# a test's tensors are small: more threads than two only wait for each other
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def cifar_path() -> Path | None:
    """The folder of real CIFAR-10, $LEANRES_DATA; None where there is none."""
    given = os.environ.get("LEANRES_DATA")
    return Path(given).resolve() if given and Path(given).exists() else None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache; test processes beside each other share theirs."""
    base = tmp_path_factory.getbasetemp()
    whole = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANRES_CACHE", str(whole / "cache"))
        yield


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture
def device() -> Device:
    return CPU("cpu", "float32", compiled=False)


@pytest.fixture
def small() -> Recipe:
    """Exercises every phase (resized images, frozen stem, EMA, flips, mixes) in 12 steps."""
    return Recipe(
        model=SpeedNetConfig((8, 16, 16)),
        epochs=2,
        batch_size=200,
        progressive_resizing=((0.0, 0.5), (0.5, 1.0)),
        augment=(("alternating_flip", {}), ("crop", {"padding": 2}), ("cutout", {"size": 6})),
        mix=(("mixup", {}), ("cutmix", {})),
        ema=0.8,
        val=200,
    )


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def leanres(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process: arguments -> exit code, stdout, stderr."""

    def call(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return call
