"""The parts of a step against hand counts, and against the loop that they are parts of."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from leanres.bench.step import (
    Clock,
    Traffic,
    convolution_rate,
    cost_of_step,
    endless,
    kind_of,
    measure_step,
)
from leanres.models.cost import summarize
from leanres.models.resnet import ResNetConfig
from leanres.runs.run import prepare
from leanres.training.device import memory_rate


@pytest.fixture
def report(tiny, digits, device):
    return measure_step(replace(tiny, progressive_resizing=(), ema=0.9), digits, device, count=2)


def test_the_parts_add_up_to_about_the_step(report):
    assert set(report["parts"]) == {
        "data and augmentation",
        "normalise and resize",
        "forward",
        "backward",
        "optimizer",
        "average of the weights",
    }
    # an idle machine is within 20 %; two busy cores are not
    assert sum(report["parts"].values()) == pytest.approx(report["seconds_per_step"], rel=0.9)
    assert report["images_per_s"] == pytest.approx(200 / report["seconds_per_step"])


def test_the_operators_add_up_to_about_the_step(report):
    assert sum(report["operators"].values()) == pytest.approx(report["seconds_per_step"], rel=0.9)
    assert {"convolution, forward", "convolution, backward"} <= set(report["operators"])


def test_no_rate_is_above_what_the_machine_can_do_by_much(report):
    assert 0 < report["share_of_matrix_rate"] < 1.5
    assert 0 < report["tflops"] < 3 * report["tflops_of_convolutions_alone"]
    assert report["peak_memory_mib"] > 50


def test_a_residual_networks_step_costs_three_forward_passes_less_the_images_gradient(
    tiny, digits, device
):
    config = ResNetConfig(widths=(8, 16), depths=(1, 1), num_classes=10)
    recipe = replace(tiny, model=config, progressive_resizing=(), optimizer="sgd", lr=0.1)
    flops, _ = cost_of_step(prepare(Path(), recipe, digits, device))
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


def test_steps_go_on_past_the_recipes_end(tiny, digits, device):
    short = replace(tiny, epochs=1, batch_size=700)
    loop = endless(prepare(Path(), short, digits, device))
    assert len([next(loop) for _ in range(5)]) == 5


def test_a_clock_counts_from_call_to_call(device):
    clock = Clock(device)
    time.sleep(0.02)
    clock("slept")
    clock("at once")
    assert 0.02 <= clock.parts["slept"] < 1
    assert clock.parts["at once"] < clock.parts["slept"]


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
        ("_ConvolveBackward", "convolution, backward"),
        ("_FusedBackward", "pooling, batch norm, activation"),
    ],
)
def test_operators_are_known_by_name(operator, kind):
    assert kind_of(operator) == kind


def test_memory_is_copied_at_a_plausible_rate(device):
    assert 1e8 < memory_rate(device, mib=64) < 1e13
