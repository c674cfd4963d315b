"""Convolutions in float32 by Winograd's algorithm, against float64 and PyTorch's own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanres.kernels import winograd
from leanres.kernels.build import library
from leanres.kernels.conv_mode import ConvMode
from leanres.kernels.winograd import winograd_conv, winograd_convolve
from leanres.models.zoo import resolve
from leanres.training.device import CPU

pytestmark = pytest.mark.skipif(library() is None, reason="no own kernels here: PyTorch's are used")
CASES = {  # images, channels in and out, height, width, padding
    "whole tiles": (4, 64, 96, 16, 16, 1),
    "a speed record's first": (3, 24, 64, 31, 31, 1),
    "7 px": (23, 96, 64, 7, 7, 1),
    "3 px": (70, 64, 64, 3, 3, 1),
    "odd channels": (5, 33, 17, 5, 6, 1),
    "not square": (5, 17, 33, 9, 4, 1),
    "the budget's widths": (3, 100, 164, 8, 8, 1),
    "the widest": (2, 512, 512, 4, 4, 1),
    "many tiles, several blocks": (40, 20, 12, 30, 30, 1),
    "no padding": (3, 24, 16, 9, 7, 0),
    "padding 2": (3, 24, 16, 5, 8, 2),
    "an image": (1, 3, 21, 12, 12, 1),
    "one channel to one": (1, 1, 1, 5, 5, 1),
}


def near(ours, right, most=1e-5):  # plain float32: 1e-7 to 1e-6
    assert ours.shape == right.shape
    return (ours.double() - right).norm() <= most * right.norm()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_a_convolution_and_so_are_its_gradients(case, form, threads):
    n, c, o, h, w, pad = case
    torch.manual_seed(0)
    images = (torch.randn(n, c, h, w) + 0.3).contiguous(memory_format=form).requires_grad_()
    weight = (torch.randn(o, c, 3, 3) / c**0.5).contiguous(memory_format=form).requires_grad_()
    x, exact = images.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    right = F.conv2d(x, exact, padding=pad)
    gradient = torch.randn_like(right)
    right.backward(gradient)
    ours = winograd_conv(images, weight, pad)
    ours.backward(gradient.float())
    assert near(ours, right)
    assert near(images.grad, x.grad)
    assert near(weight.grad, exact.grad)


def test_memory_beside_the_maps_is_neither_read_nor_written():
    torch.manual_seed(0)
    memory = torch.full((7, 6, 6, 20), float("nan"))  # a map before and after
    memory[1:6] = torch.randn(5, 6, 6, 20)
    images = memory[1:6].permute(0, 3, 1, 2)
    weight = torch.randn(24, 20, 3, 3)
    gradients = torch.full((7, 6, 6, 24), float("nan"))
    gradients[1:6] = torch.randn(5, 6, 6, 24)
    ours = winograd._grad_weight(images, gradients[1:6].permute(0, 3, 1, 2), 1)
    assert winograd_conv(images, weight, 1).isfinite().all()
    assert ours.isfinite().all()
    assert memory[0].isnan().all()
    assert memory[6].isnan().all()


@pytest.mark.parametrize("which", [(True, False), (False, True)], ids=["images", "weight"])
def test_only_the_needed_gradient_is_computed(which, monkeypatch):
    images, weight = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3)
    for tensor, needed in zip((images, weight), which, strict=True):
        tensor.requires_grad_(needed)
    y = winograd_conv(images, weight, 1)
    unneeded = "_grad_weight" if which[0] else "_multiply"
    monkeypatch.setattr(winograd, unneeded, None)
    y.sum().backward()
    assert [t.grad is not None for t in (images, weight)] == [*which]


def test_it_takes_only_convolutions_that_are_faster_so(monkeypatch):
    taken = []
    own = winograd.winograd_conv
    monkeypatch.setattr(winograd, "winograd_conv", lambda *a: taken.append(1) or own(*a))
    maps = torch.randn(2, 32, 8, 8)
    others = (
        (maps, nn.Conv2d(32, 32, 3, 2, 1)),
        (maps, nn.Conv2d(32, 32, 1)),
        (maps, nn.Conv2d(32, 32, 3, 1, 2, dilation=2)),
        (maps, nn.Conv2d(32, 32, 3, 1, 1, groups=2)),
        (maps, nn.Conv2d(32, 32, 3, 1, "same")),
        (maps, nn.Conv2d(32, 32, 3, 1, (0, 1))),
        (maps[:, :3], nn.Conv2d(3, 8, 3, 1, 1)),
        (maps[:, :, :2, :2], nn.Conv2d(32, 32, 3, 1, 1)),
        (maps[:0], nn.Conv2d(32, 32, 3, 1, 1)),
        (maps[0], nn.Conv2d(32, 32, 3, 1, 1)),
        (maps.double(), nn.Conv2d(32, 32, 3, 1, 1).double()),
    )
    for images, conv in others:
        with ConvMode(winograd_convolve):
            ours = conv(images)
        assert ours.equal(conv(images))
    assert not taken
    conv = nn.Conv2d(32, 16, 3, 1, 1)  # with a bias
    with ConvMode(winograd_convolve):
        ours = conv(maps)
    assert taken
    assert torch.allclose(ours, conv(maps), atol=1e-5)


def test_a_counter_of_operators_sees_pytorchs_own():
    conv, maps = nn.Conv2d(32, 32, 3, 1, 1), torch.randn(2, 32, 8, 8)
    with FlopCounterMode(display=False) as plain:
        conv(maps).sum().backward()
    with FlopCounterMode(display=False) as ours:
        with ConvMode(winograd_convolve):
            y = conv(maps)
        y.sum().backward()
    assert ours.get_total_flops() == plain.get_total_flops() > 0


@pytest.mark.parametrize("name", ["speednet", "resnet20"])
def test_a_network_is_as_near_its_float64_gradients_as_float32_is(name):
    torch.manual_seed(0)
    device = CPU("cpu", "float32", compiled=False)
    model = device.place(resolve(name).build()).train()
    forward = device.training_forward(model)
    assert forward.convolve is winograd_convolve
    exact = copy.deepcopy(model).double()
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    loss = F.cross_entropy(forward(images), labels)
    loss.backward()
    right = F.cross_entropy(exact(images.double()), labels)
    right.backward()
    assert abs(loss.item() - right.item()) < 1e-4
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    errors = [(p.grad - e.grad).norm() / e.grad.norm() for p, e in pairs if p.requires_grad]
    assert max(errors) < 0.03  # 0.01 in plain float32: a ReLU that tips, a maximum that moves


def test_the_same_images_have_the_same_result_bit_for_bit():
    torch.manual_seed(0)
    maps, weight = torch.randn(9, 32, 12, 12), torch.randn(32, 32, 3, 3)
    once, again = (winograd._grad_weight(maps, maps, 1) for _ in range(2))
    assert once.equal(again)
    assert winograd_conv(maps, weight, 1).equal(winograd_conv(maps, weight, 1))


def test_with_fewer_threads_than_asked_for_no_sum_is_left_uninitialised():
    code = """
import torch
from leanres.kernels import winograd
torch.set_num_threads(4)
torch.randn(500, 500).mm(torch.randn(500, 500)); torch.full((400, 36, 64, 64), float("nan"))
maps = torch.randn(4, 32, 8, 8).contiguous(memory_format=torch.channels_last)
exact = torch.nn.grad.conv2d_weight(maps.double(), (32, 32, 3, 3), maps.double(), padding=1)
print(float((winograd._grad_weight(maps, maps, 1) - exact).norm() / exact.norm()))
"""
    few = {**os.environ, "OMP_THREAD_LIMIT": "2", "MALLOC_PERTURB_": "127"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=few, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-5
