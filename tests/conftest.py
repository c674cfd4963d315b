"""What every test shares: real data where there is some, and a cache of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from forks import ForkedPopen
from torch import nn
from torch._subclasses import FakeTensorMode

from leanres import plugins
from leanres.augment.mix import MIXES
from leanres.augment.registry import AUGMENTS
from leanres.cli import main
from leanres.data.sources import SOURCES, load_data
from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset, Split
from leanres.metrics.classification import METRICS
from leanres.models.config import FACTORIES
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import MODELS
from leanres.runs.fit import fit
from leanres.training.device import CPU, Device
from leanres.training.losses import LOSSES
from leanres.training.optim import OPTIMIZERS
from leanres.training.recipe import Recipe
from leanres.training.schedules import SCHEDULES
from leanres.training.timing import memory_rate

PLAN = """
[quick]
recipe = "digits"
seeds = [3, 4]
set = ["model={family='speednet', widths=[8]}", "epochs=1"]

[digits]
measure = "val"
set = ["model={family='speednet', widths=[8]}", "epochs=2"]
"""

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


@pytest.fixture(scope="session", autouse=True)
def _small_rates() -> Iterator[None]:
    """The machine's rates are those of a small product and copy: the largest take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanres.training.timing.PRODUCT_S", 0.0)
        patch.setattr(memory_rate, "__defaults__", (16,))  # MiB
        yield


@pytest.fixture(scope="session", autouse=True)
def _digits_once() -> None:
    """Hundreds of tests load the digits: those of a size are enlarged once."""
    source, real = SOURCES["digits"], SOURCES["digits"].load
    once = cache(lambda size: real(LoadOptions(None, Path(), size)))

    def load(options: LoadOptions) -> Dataset:
        return once(options.size) if options.path is None else real(options)

    SOURCES["digits"] = replace(source, load=load)


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


@pytest.fixture(scope="session")
def noisy(digits: Dataset) -> Dataset:
    """300 digits to train on; val labels are shuffled, so that no accuracy rises for long."""
    train, val = digits.train.subset(range(300)), digits.train.subset(range(300, 500))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    return replace(digits, train=train, val=Split(val.images, val.labels[order], val.classes))


@pytest.fixture(scope="session")
def stopping() -> Recipe:
    """Ends early on `noisy`, and keeps the best epoch."""
    return Recipe(
        model=SpeedNetConfig((8,)),
        epochs=40,
        batch_size=100,
        augment=(),
        ema=0.8,
        stop_after=2,
        keep_best=True,
    )


@pytest.fixture(scope="session")
def three_runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small runs: a, b (another seed) and plain (no val images, another lr)."""
    folder, device = tmp_path_factory.mktemp("runs"), CPU("cpu", "float32", compiled=False)
    recipe = Recipe(
        model=SpeedNetConfig((8, 16)),
        epochs=3,
        batch_size=200,
        accumulate=1,
        augment=(("crop", {"padding": 2}),),
        progressive_resizing=((0.0, 0.75), (0.6, 1.0)),
        val=200,
    )
    fit(folder / "a", recipe, digits, device)
    fit(folder / "b", replace(recipe, seed=1), digits, device)
    fit(folder / "plain", replace(recipe, val=0, lr=0.01), digits, device)
    return folder


@pytest.fixture
def copied(three_runs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of these runs that a test may change: (name, new name) -> its folder."""

    def copy(name: str = "a", new: str = "") -> Path:
        return Path(shutil.copytree(three_runs / name, tmp_path / (new or name)))

    return copy


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of three trainings of a second each: quick-3, quick-4 and digits-0."""
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `LocalProcesses` starts are forks of this process; test_jobs.py starts real ones."""
    forking = SimpleNamespace(**vars(subprocess) | {"Popen": ForkedPopen})
    monkeypatch.setattr("leanres.trials.executors.subprocess", forking)


@pytest.fixture
def on_a_gpu() -> nn.Module:
    """Filters, a matrix and a bias without values, which say that they are on a GPU."""
    shapes = ((4, 3, 3, 3), (10, 4), (10,))
    with FakeTensorMode():
        tensors = [torch.empty(shape, device="cuda") for shape in shapes]
        return nn.ParameterList(map(nn.Parameter, tensors))


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """PyTorch's number of threads is as before after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def plugins_forgotten() -> Iterator[None]:
    """After the test no plugin is loaded, and the tables are as before."""
    tables = (MODELS, FACTORIES, AUGMENTS, MIXES, LOSSES, OPTIMIZERS, SCHEDULES, METRICS)
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in table.keys() - entries.keys():
            del table[name]
    plugins.LOADED.clear()
    plugins._MODULES.clear()
    for name in set(sys.modules) - modules:
        if name.startswith(plugins._PREFIX):
            del sys.modules[name]
