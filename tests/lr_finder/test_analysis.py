"""The analysis of an LR range test: grids, smoothing, rules and results; and its plots."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.errors import UserError
from leanres.lr_finder.analysis import (
    MODES,
    RULES,
    LossCurve,
    LRRange,
    LRSweep,
    analyse,
    lowest,
    running_mean,
    smooth,
)
from leanres.lr_finder.plot import ASCII, chart, figure, rule_label
from leanres.training.recipe import Recipe

LOWER = "give a lower lr_min (--lr-min)"


@pytest.mark.parametrize(("low", "high", "n"), [(1e-6, 10.0, 100), (0.01, 0.5, 16)])
def test_the_grids_are_exact(low, high, n):
    rising = LRSweep(low, high, n).lrs
    evenly = LRSweep(low, high, n, mode="linear").lrs
    np.testing.assert_allclose(
        rising, [low * (high / low) ** (i / (n - 1)) for i in range(n)], rtol=1e-12
    )
    np.testing.assert_allclose(
        evenly, [low + (high - low) * i / (n - 1) for i in range(n)], rtol=1e-12
    )
    for lrs in (rising, evenly):
        assert (lrs[0], lrs[-1], len(lrs)) == (low, high, n)
    assert set(MODES) == {"exponential", "linear"}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.8, 0.98])
def test_smoothing_equals_the_weighted_mean_of_a_slow_loop(decay):
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    n = len(values)
    for i in range(n):
        ages = [decay ** abs(i - j) for j in range(n)]
        left = sum(w * v for w, v in zip(ages[: i + 1], values[: i + 1], strict=True))
        both = sum(w * v for w, v in zip(ages, values, strict=True))
        assert running_mean(values, decay)[i] == pytest.approx(left / sum(ages[: i + 1]))
        assert smooth(values, decay)[i] == pytest.approx(both / sum(ages))


def test_smoothing_does_not_shift_a_bump():
    bump = [float(i == 50) for i in range(101)]
    assert int(np.argmax(smooth(bump, 0.9))) == 50


def test_the_reach_of_the_smoothing_grows_with_the_steps():
    assert LRSweep(steps=100).decay == pytest.approx(0.8)
    assert LRSweep(steps=1000).decay == pytest.approx(0.98)
    assert LRSweep(steps=100, smoothing=0).decay == 0


def made(shape, sweep: LRSweep) -> LRRange:
    """The result for a loss that is a function of log10 lr."""
    return analyse([shape(math.log10(lr)) for lr in sweep.lrs], sweep)


def sigmoid(at: float, width: float = 0.2):
    return lambda x: 2 - 1.5 / (1 + math.exp(-(x - at) / width)) + 3 * max(0.0, x - 0.3)


@pytest.mark.parametrize(
    "sweep",
    [LRSweep(steps=700, smoothing=0), LRSweep(0.003, 0.3, 1000, mode="linear", smoothing=0)],
    ids=MODES,
)
def test_the_rules_find_the_parameters_of_a_smooth_curve(sweep):
    found = made(sigmoid(-1.5), sweep)
    assert math.log10(found.suggestions["steepest"]) == pytest.approx(-1.5, abs=0.15)
    lowest_lr = min(sweep.lrs, key=lambda lr: sigmoid(-1.5)(math.log10(lr)))
    assert found.suggestions["minimum"] == lowest_lr / 2
    # The linear sweep ends before the loss rises.
    highest = "minimum" if sweep.mode == "exponential" else "steepest"
    assert found.rules == {"lr_min": "onset", "lr_max": highest}
    assert found.suggestions["onset"] < 10**-1.7
    assert (found.lr_min, found.lr_max) == tuple(found.suggestions[r] for r in found.rules.values())
    assert all(reason.count(".\n") == 0 and len(reason) > 20 for reason in found.reasons.values())


def test_the_minimum_is_half_the_lr_of_the_lowest_loss():
    curve = LossCurve([1.0, 10.0, 100.0, 1000.0, 10000.0], [3.0, 4.0, 2.0, 1.0, 0.5], reach=1)
    assert RULES["minimum"].lr(curve) == 5000


def test_a_recovery_after_the_first_rise_is_ignored():
    losses = [2.0, 2.0, 1.5, 1.55, 1.0, 1.2, 1.3, 0.9, 0.5]
    assert lowest(losses, least=0.1) == 4
    assert lowest(losses, least=0.4) == 8  # rises that small do not count


def test_a_loss_that_still_falls_at_the_end_gives_the_steepest_lr_and_says_so():
    found = made(lambda x: 3 - 0.3 * x, LRSweep(1e-4, 1e-1, 50))
    assert "and still at the end" in found.reasons["lr_max"]
    assert found.rules["lr_max"] == "steepest"
    assert found.stopped == "reached lr 0.1 after 50 steps"


def test_the_result_says_where_and_why_the_test_stopped():
    sweep = LRSweep(steps=100)
    losses = [sigmoid(-2.0)(math.log10(lr)) for lr in sweep.lrs]
    cut = analyse([*losses[:80], math.nan, *losses[81:]], sweep)
    assert cut.stopped == f"the loss was nan at lr {sweep.lrs[80]:.2g}, step 81 of 100"
    assert len(cut.lrs) == len(cut.losses) == len(cut.smoothed) == 80
    blown = analyse([*losses[:80], 50.0, 1e9, math.inf], sweep)
    assert "exceeded 4 times its best" in blown.stopped
    assert all(map(math.isfinite, blown.losses))
    json.dumps(blown.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "parts"),
    [
        ([math.nan] * 20, ["nan before the first update", "float32"]),
        (
            [2.0, 2.0, math.inf, *[2.0] * 17],
            ["was inf", "step 3 of 20", LOWER],
        ),
        (
            [2.0, 900.0, *[1e9] * 8],
            ["exceeded 4 times", "step 2 of 20", LOWER],
        ),
        ([2.0] * 20, ["stays at 2", "lr_max (--lr-max)"]),
        (
            [2.3 + 0.01 * (-1) ** i for i in range(20)],
            ["stays at 2.3", "lr_max (--lr-max)"],
        ),
        (
            [2.0 + 0.1 * i for i in range(20)],
            ["never falls below", LOWER],
        ),
        ([2.0, 1.0, 1.1, *[3.0] * 17], ["lowest at lr", LOWER]),
    ],
    ids=["not-finite", "soon-inf", "diverges-at-once", "flat", "noise", "rises", "turns-at-once"],
)
def test_a_curve_without_an_answer_is_an_error_of_one_line(losses, parts):
    with pytest.raises(UserError) as caught:
        analyse(losses, LRSweep(steps=20, smoothing=0.0))
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.fixture(scope="module")
def found() -> LRRange:
    return made(sigmoid(-1.5), LRSweep())


def test_the_figure_shows_both_curves_and_names_every_rule(found, tmp_path):
    drawing = figure(found)
    drawing.savefig(tmp_path / "lr.png")
    axes = drawing.axes[0]
    assert axes.get_xscale() == "log"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(texts) == 2 + len(RULES)
    assert any(text.startswith("lr_max, minimum") for text in texts)
    with Image.open(tmp_path / "lr.png") as picture:
        assert np.asarray(picture).std() > 10


def test_the_chart_keeps_its_size_and_marks_the_rules(found):
    lines = chart(found, width=60, height=15).plain.splitlines()
    *area, axis, names = lines
    assert (len(lines), {len(line) for line in lines}) == (17, {70})
    assert names.split() == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10"]
    marks = "".join(area).translate(str.maketrans("", "", " ·•│0123456789.-"))
    assert sorted(marks) == sorted(rule[0].upper() for rule in RULES)
    left, right = axis.index("━"), axis.rindex("━")
    assert any(line[left] == "O" for line in area)
    assert any(line[right] == "M" for line in area)
    assert chart(found).plain.translate(ASCII).isascii()
    assert rule_label(found, "steepest") == "steepest"
    assert rule_label(found, "onset") == "lr_min, onset"


@pytest.mark.parametrize("low", [1e-6, 1e-9, 1e-12])
def test_the_ticks_of_a_wide_range_do_not_touch(low):
    wide = made(sigmoid(-1.5), LRSweep(lr_min=low, steps=1000))
    names = chart(wide).plain.splitlines()[16]
    assert 2 <= len(names.split()) <= 10
    assert [f"{float(name):g}" for name in names.split()] == names.split()


def test_a_narrow_range_has_its_ends_as_ticks():
    narrow = made(lambda x: 3 - x, LRSweep(0.02, 0.08, 30))
    shown = chart(narrow).plain.splitlines()[16].split()
    assert shown[-1] == "0.08"
    assert len(shown) == 2


@pytest.mark.parametrize("given", [None, 0.003])
def test_a_one_cycle_schedule_without_lr_min_gets_that_of_the_test(found, given):
    details = {"peak_epoch": 2.0} | ({} if given is None else {"lr_min": given})
    recipe = Recipe(optimizer="sgd", lr=0.5, schedule=("one-cycle", details))
    changed = replace(recipe, **found.settings(recipe))
    assert changed.lr == found.lr_max
    low = found.lr_min if given is None else given
    assert changed.schedule == ("one-cycle", {"peak_epoch": 2.0, "lr_min": low})
    assert replace(changed, lr=0.5, schedule=recipe.schedule) == recipe


def quadratic_losses(sweep: LRSweep, condition: float, noise: float, seed: int) -> list[float]:
    """SGD on sum h w^2 / 2 with curvatures h from 1 / condition to L = 1; an oracle in numpy."""
    rng, h = np.random.default_rng(seed), np.geomspace(1, 1 / condition, 50)
    w, losses = rng.standard_normal(50) / 50**0.5, []
    for lr in sweep.lrs:
        loss = 0.5 * float((h * w * w).sum()) + 1e-3
        losses.append(loss * (1 + 0.1 * bool(noise) * rng.standard_normal()))
        if loss > 1e12:
            break
        w = w - lr * (h * w + noise * rng.standard_normal(50))
    return losses


@pytest.mark.parametrize("condition", [1, 100])
@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 1.0, 4.0), (0.05, 0.05, 0.3)])
def test_on_quadratics_lr_max_is_where_the_comment_says(condition, noise, low, high):
    """In units of the stability limit 2 / L: beyond it without noise, far below it with noise."""
    sweep = LRSweep(lr_min=1e-5, lr_max=100.0, steps=100)
    found = [
        analyse(quadratic_losses(sweep, condition, noise, seed), sweep).lr_max / 2
        for seed in range(12)
    ]
    assert low < min(found) <= max(found) < high
