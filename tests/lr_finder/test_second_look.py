"""The default length of a range test, and the second test that follows one without an answer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from leanres.data.sources import load_data
from leanres.data.split import Split
from leanres.lr_finder.analysis import LRSweep
from leanres.lr_finder.finder import default_steps, find_lr
from leanres.models.speednet import SpeedNetConfig
from leanres.training.device import CPU, Device
from leanres.training.recipe import Recipe

TINY = Recipe(model=SpeedNetConfig((8, 16)), epochs=2, batch_size=50)


@pytest.fixture
def digits() -> Split:
    return load_data("digits").train.subset(range(300))


@pytest.fixture
def device() -> Device:
    return CPU("cpu", "float32", compiled=False)


def settles(lr: float) -> float:
    """The loss of a DavidNet on CIFAR-10 in a hundred steps: from 4.6 to 2.4 and up again."""
    x = math.log10(lr)
    return 2.4 + 2.2 / (1 + math.exp(4 * (x + 5))) + 3 * max(0.0, x + 2.2)


def learns(share: float) -> float:
    """The same network in a linear sweep: the loss rises at first, then falls below chance."""
    return 5 - 3 * share + 4 * math.exp(-((20 * share - 1.3) ** 2))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (learns, "chance level; a linear test: reached lr"),
        (lambda share: 2.5 - 0.1 * share, "chance level: give another range"),
        (lambda share: math.inf if share > 0.05 else 5.0, "chance level: give another range"),
    ],
    ids=["learns", "guesses", "diverges"],
)
def test_a_curve_that_falls_to_chance_level_is_followed_by_a_linear_test(
    digits, device, monkeypatch, second, said
):
    sweeps = []

    def losses(state, setup, sweep) -> list[float]:
        sweeps.append(sweep)
        if sweep.mode == "linear":
            return [second(lr / sweep.lr_max) for lr in sweep.lrs]
        return [settles(lr) for lr in sweep.lrs]

    monkeypatch.setattr("leanres.lr_finder.finder._losses", losses)
    found = find_lr(TINY, digits, device)
    first, other = sweeps
    assert (first, other.mode) == (LRSweep(), "linear")
    assert 1e-4 < 2 * other.lr_min == pytest.approx(other.lr_max / 100)
    assert other.steps == first.steps == 100  # 300 images in batches of 50
    assert said in found.stopped
    if second is learns:
        assert other.lr_min < found.lr_max < other.lr_max
    else:
        assert found.lr_max < 1e-3
    assert found.lr_min <= found.lr_max / 10
    sweeps.clear()
    asked = find_lr(TINY, digits, device, steps=100)
    assert len(sweeps) == 1  # a given sweep is the only one
    assert asked.lr_max < 1e-3


@pytest.mark.parametrize(
    ("batch", "images", "expected"),
    [
        (32, 50_000, 782),
        (128, 50_000, 196),
        (2000, 50_000, 100),
        (64, 1437, 100),
        (8, 50_000, 1000),
    ],
)
def test_small_batches_get_more_steps(batch, images, expected):
    assert default_steps(replace(TINY, batch_size=batch), images) == expected
