"""The parts of a step against hand counts, and against the loop that they are parts of."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import Function

import leanres.kernels  # noqa: F401 (so that its functions exist)
from leanres.bench.step import (
    OPERATORS,
    Traffic,
    convolution_rate,
    cost_of_step,
    endless,
    kind_of,
    measure_step,
    operator_seconds,
    part_seconds,
)
from leanres.models.cost import summarize
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.run import prepare
from leanres.training.batch import steps_augmented_together
from leanres.training.device import CPU
from leanres.training.recipe import Recipe

COUNT = 2


@pytest.fixture(scope="module")
def report(digits):
    recipe = Recipe(model=SpeedNetConfig((8, 16, 16)), epochs=2, batch_size=200, ema=0.9)
    return measure_step(recipe, digits, CPU("cpu", "float32", compiled=False), COUNT)


def test_a_report_holds_every_part_and_its_rates_follow_from_its_seconds(report):
    assert set(report["parts"]) == {
        "data and augmentation",
        "normalise and resize",
        "forward",
        "backward",
        "optimizer",
        "average of the weights",
    }
    seconds = report["seconds_per_step"]
    assert report["images_per_s"] == pytest.approx(200 / seconds)
    assert report["tflops"] == pytest.approx(report["tflop_per_step"] / seconds)
    traffic = report["gb_per_step"] / seconds / report["memory_gb_per_s"]
    assert report["share_of_memory_rate"] == pytest.approx(traffic)
    assert report["peak_memory_mib"] > 50


def test_the_parts_are_all_of_the_time_that_their_steps_take(tiny, digits, device):
    """Timed around the same steps, so that a busy machine cannot make them differ."""
    run = prepare(replace(tiny, progressive_resizing=()), digits, device)
    together = steps_augmented_together(run.setup.train, run.setup.counts)
    began = time.perf_counter()
    parts = part_seconds(run, COUNT)
    elapsed = time.perf_counter() - began
    measured = together * math.ceil(COUNT / together)
    spent = measured * sum(parts.values())
    # As many steps again, or fewer, warm up before.
    assert elapsed * measured / (measured + together) * 0.3 < spent < elapsed


def test_the_operators_take_no_longer_than_the_steps_that_ran_them(tiny, digits, device):
    run = prepare(replace(tiny, progressive_resizing=()), digits, device)
    began = time.perf_counter()
    operators = operator_seconds(run, count=3)
    elapsed = time.perf_counter() - began
    assert 0 < 3 * sum(operators.values()) < elapsed
    assert {"convolution, forward", "convolution, backward"} <= set(operators)


def test_a_residual_networks_step_costs_three_forward_passes_less_the_images_gradient(
    tiny, digits, device
):
    config = ResNetConfig(widths=(8, 16), depths=(1, 1), num_classes=10)
    recipe = replace(tiny, model=config, progressive_resizing=(), optimizer="sgd", lr=0.1)
    flops, _ = cost_of_step(prepare(recipe, digits, device))
    summary = summarize(config)
    stem = next(row.macs for row in summary.rows if row.macs)
    assert flops == 2 * recipe.batch_size * (3 * summary.macs - stem)


def test_traffic_is_what_operators_read_and_write_and_views_are_free():
    a, b = torch.ones(100), torch.ones(100)
    with Traffic() as traffic:
        a + b
    assert traffic.bytes == 3 * 400
    with Traffic() as traffic:
        assert a.view(10, 10).T.shape == (10, 10)
    assert traffic.bytes == 0


def test_convolutions_alone_are_timed_both_ways_and_left_without_gradients(device):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    rate = convolution_rate(model, torch.randn(4, 3, 32, 32), device)
    assert 1e6 < rate < 1e14
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_steps_continue_past_the_recipes_end(tiny, digits, device):
    short = replace(tiny, epochs=1, batch_size=700)
    loop = endless(prepare(short, digits, device))
    assert len([next(loop) for _ in range(5)]) == 5


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution, forward"),
        ("aten::convolution_backward", "convolution, backward"),
        ("aten::cudnn_convolution", "convolution, forward"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("aten::native_batch_norm", "batch norm"),
        ("aten::_upsample_bilinear2d_aa", "augmentation and resize"),
        ("aten::addmm", "matrix products (optimizer, classifier)"),
        ("aten::mul", "rest"),
        ("_WinogradConvBackward", "convolution, backward"),
        ("PoolNormActBackward", "pooling, batch norm, activation"),
    ],
)
def test_operators_are_known_by_name(operator, kind):
    assert kind_of(operator) == kind


def test_every_function_of_our_own_kernels_is_known():
    own = [f for f in Function.__subclasses__() if f.__module__.startswith("leanres.kernels")]
    assert len(own) >= 7
    for function in own:
        for name in (function.__name__, f"{function.__name__}Backward"):
            assert name.startswith(OPERATORS)
            assert kind_of(name) != "rest"
