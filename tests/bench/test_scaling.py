"""Curves of cost: the line against one that is known, networks against their budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leanres.bench.scaling import (
    CostCurve,
    batch_curve,
    figure,
    images_curve,
    network_curve,
    widened,
)
from leanres.errors import UserError
from leanres.models.cost import count_params
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import MODELS


@pytest.fixture
def quick(tiny):
    return replace(tiny, progressive_resizing=(), batch_size=100)


def curve(x, seconds):
    return CostCurve("images", "image", "per step", tuple(x), tuple(seconds), ("",) * len(x))


def test_a_straight_line_is_found_and_is_straight():
    straight = curve((1, 10, 100), (2.5, 7, 52))
    assert straight.line == pytest.approx((2, 0.5))
    assert straight.deviations == pytest.approx((0, 0, 0), abs=1e-12)


def test_no_other_line_has_smaller_relative_deviations():
    bent = curve((1, 10, 100, 1000), (1, 3, 30, 200))
    fixed, slope = bent.line

    def cost(a, b):
        return sum(((a + b * x) / s - 1) ** 2 for x, s in zip(bent.x, bent.seconds, strict=True))

    around = [
        cost(fixed + da, slope + db)
        for da in (-0.01, 0, 0.01)
        for db in (-1e-3, 0, 1e-3)
        if (da, db) != (0, 0)
    ]
    assert cost(fixed, slope) < min(around)
    line = fixed + slope * np.array(bent.x)
    assert bent.deviations == pytest.approx(np.array(bent.seconds) / line - 1)


@pytest.mark.parametrize(
    "config",
    [
        SpeedNetConfig(),
        ResNetConfig(widths=(32, 64, 128), depths=(1, 1, 1)),
        ResNetConfig(widths=(16, 16), depths=(1, 1)),
    ],
)
@pytest.mark.parametrize("budget", [300_000, 2_000_000])
def test_a_widened_network_fills_its_budget_in_its_proportions(config, budget):
    fitted = widened(config, budget)
    assert 0.5 * budget < count_params(fitted.build()) <= budget
    proportions = np.array(fitted.widths) / np.array(config.widths)
    assert proportions == pytest.approx(proportions[0])
    assert all(width % 8 == 0 for width in fitted.widths)


def test_every_family_can_be_widened():
    for entry in MODELS.values():
        assert count_params(widened(entry.config, 1_500_000).build()) <= 1_500_000


def test_a_budget_that_no_width_fits_is_refused():
    with pytest.raises(UserError, match="budget of 100"):
        widened(SpeedNetConfig(), 100)


def test_more_work_takes_longer_and_is_counted(quick, digits, device):
    by_batch = batch_curve(quick, digits, device, [20, 1000], count=2)
    grad_input = images_curve(quick, digits, device, [0.2, 2])
    networks = [widened(quick.model, budget) for budget in (15_000, 300_000)]
    by_size = network_curve(quick, digits, device, networks, count=2)
    for found in (by_batch, grad_input, by_size):
        assert found.seconds[1] > found.seconds[0] > 0
    # whole batches of 100: of 287 images, and of 2,874
    assert grad_input.x == (200, 2800)
    assert by_size.x[1] > 4 * by_size.x[0]


def test_a_batch_beyond_the_images_is_refused(quick, digits, device):
    with pytest.raises(UserError, match="5,000 is more than"):
        batch_curve(quick, digits, device, [20, 5000], count=1)


def test_shares_of_the_same_images_are_refused(quick, digits, device):
    with pytest.raises(UserError, match="two of these"):
        images_curve(quick, digits, device, [1e-9, 2e-9, 1])


def test_each_curve_has_a_panel_with_its_points_and_its_line():
    curves = [curve((1, 10, 100), (2.5, 7, 52)), curve((1, 2), (1, 2))]
    panels = figure(curves).axes
    assert len(panels) == 2
    for panel, drawn in zip(panels, curves, strict=True):
        assert panel.collections[0].get_offsets().tolist() == [
            list(point) for point in zip(drawn.x, drawn.seconds, strict=True)
        ]
        xs, ys = panel.lines[0].get_data()
        fixed, slope = drawn.line
        assert ys == pytest.approx(fixed + slope * xs)
