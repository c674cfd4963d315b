"""The learning rate over a training, against PyTorch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanres.errors import UserError
from leanres.training.schedules import SCHEDULES, SchedulePoint, lr_factor


def factors(name: str, total: int = 60, epoch_steps: int = 10, lr: float = 0.5, **settings):
    """What a schedule makes of every step."""
    return [
        lr_factor((name, settings), SchedulePoint(step, total, epoch_steps, lr))
        for step in range(total)
    ]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_within_its_peak_and_reaches_it(name):
    seen = factors(name, peak_epoch=2) if name == "one-cycle" else factors(name)
    assert max(seen) == pytest.approx(1)
    assert min(seen) > 0


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"one-cycle"}))
def test_a_schedule_starts_at_its_peak_after_the_rise(name):
    seen = [
        lr_factor((name, {}), SchedulePoint(step, 100, 10, 1.0), warmup=10) for step in range(100)
    ]
    assert seen[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert seen[10] == pytest.approx(1)


def pytorchs(make, steps: int, lr: float = 0.5) -> list[float]:
    """The lrs that one of PyTorch's schedulers gives, as shares of `lr`."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr)
    oracle = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(oracle.get_last_lr()[0] / lr)
        optimizer.step()
        oracle.step()
    return found


def test_cosine_equals_pytorchs_per_step_and_per_epoch():
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    assert factors("cosine") == pytest.approx(pytorchs(lambda o: cosine(o, 60), 60), abs=1e-12)
    per_epoch = [f for f in pytorchs(lambda o: cosine(o, 6), 6) for _ in range(10)]
    assert factors("cosine", per_epoch=True) == pytest.approx(per_epoch, abs=1e-12)


def test_step_equals_pytorchs():
    oracle = pytorchs(lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.3), 6)
    expected = [f for f in oracle for _ in range(10)]
    assert factors("step", every_epochs=2, gamma=0.3) == pytest.approx(expected)


@pytest.mark.parametrize("annihilation", [False, True])
@pytest.mark.parametrize(("shape", "pytorch"), [("linear", "linear"), ("cosine", "cos")])
def test_one_cycle_equals_pytorchs_where_the_settings_coincide(annihilation, shape, pytorch):
    expected = pytorchs(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            max_lr=0.5,
            total_steps=240,
            pct_start=5 / 24,
            div_factor=10,
            final_div_factor=1e4 if annihilation else 1,
            anneal_strategy=pytorch,
            cycle_momentum=False,
        ),
        240,
    )
    settings = {"peak_epoch": 5.0, "lr_min": 0.05, "annihilation": annihilation, "shape": shape}
    assert factors("one-cycle", 240, **settings) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_peaks_at_its_epoch_and_without_annihilation_never_falls_below_lr_min():
    lrs = [0.5 * f for f in factors("one-cycle", 240, peak_epoch=5, lr_min=0.02)]
    assert lrs.index(max(lrs)) == 49  # the fifth epoch's last step
    assert lrs[0] == lrs[-1] == pytest.approx(0.02)
    assert min(lrs) == pytest.approx(0.02)
    below = [0.5 * f for f in factors("one-cycle", 240, lr_min=0.02, annihilation=True)]
    assert below[-1] == pytest.approx(0.02e-4)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (("one-cycle", {"peak_epoch": 24.0}), "not within the 24 epochs"),
        (("one-cycle", {"peak_epoch": 0}), "not within"),
        (("one-cycle", {"lr_min": 1.0}), "lr_min = 1.0 is above lr = 0.5"),
    ],
)
def test_a_schedule_refuses_values_that_make_no_sense(schedule, message):
    with pytest.raises(UserError, match=message):
        lr_factor(schedule, SchedulePoint(0, 240, 10, 0.5))
