"""Clones over the same parameters, and the strided convolutions that oneDNN must not compute."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from leanres.models.resnet import ResNetConfig
from leanres.models.swap_layers import (
    SubsampledConv,
    clone_sharing_parameters,
    subsample_before_narrow_convs,
)

NARROW = {
    "no bias": nn.Conv2d(7, 9, 1, 2, bias=False),
    "bias": nn.Conv2d(3, 5, 1, 3),
    "not square": nn.Conv2d(15, 20, 1, (1, 2)),
}
OTHERS = {
    "wide": nn.Conv2d(16, 9, 1, 2),
    "stride 1": nn.Conv2d(7, 9, 1),
    "3x3": nn.Conv2d(7, 9, 3, 2),
    "padded": nn.Conv2d(7, 9, 1, 2, padding=1),
    "groups": nn.Conv2d(6, 6, 1, 2, groups=2),
}


def test_a_clone_shares_tensors_and_modes_and_its_layers_are_its_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval())
    clone = clone_sharing_parameters(model)
    assert [id(t) for t in clone.state_dict(keep_vars=True).values()] == [
        id(t) for t in model.state_dict(keep_vars=True).values()
    ]
    assert [m.training for m in clone.modules()] == [True, True, False]
    clone[0] = nn.Identity()
    assert isinstance(model[0], nn.Conv2d)


@pytest.mark.parametrize("conv", NARROW.values(), ids=NARROW)
def test_a_narrow_strided_convolution_computes_the_same(conv):
    images = torch.randn(4, conv.in_channels, 9, 8)
    swapped = subsample_before_narrow_convs(conv)
    assert type(swapped) is SubsampledConv
    assert type(conv) is nn.Conv2d
    exact = copy.deepcopy(conv).double()
    gradient = torch.randn_like(out := swapped(images))
    out.backward(gradient)
    right = exact(images.double())
    right.backward(gradient.double())
    torch.testing.assert_close(out.double(), right, rtol=1e-5, atol=1e-5)
    for p, q in zip(conv.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_are_left_alone(conv):
    assert subsample_before_narrow_convs(conv) is conv


def test_only_the_narrow_convolutions_of_a_network_are_swapped():
    model = ResNetConfig((3, 7, 16, 20), (1, 1, 1, 1)).build()
    swapped = subsample_before_narrow_convs(model)
    shortcuts = [block.shortcut for stage in swapped.stages for block in stage]
    kinds = [type(shortcut[0]) for shortcut in shortcuts if isinstance(shortcut, nn.Sequential)]
    assert kinds == [SubsampledConv, SubsampledConv, nn.Conv2d]


@pytest.mark.parametrize("blocked", [[], ["leanres.kernels"]], ids=["kernels", "without"])
def test_narrow_networks_train_where_there_is_avx2_alone(blocked):
    # In a process of its own: without the swap oneDNN overruns memory, and it crashes.
    code = """
import sys
import torch
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # the import of these fails
from torch.nn import functional as F
from leanres.models.resnet import ResNetConfig
from leanres.training.device import CPU
torch.manual_seed(0)
device = CPU("cpu", "float32", compiled=False)
network = device.place(ResNetConfig((3, 7, 9), (1, 1, 1)).build())
forward = device.training_forward(network)
images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
labels, weights = torch.arange(64) % 10, list(network.parameters())
for step in range(20):
    found = torch.autograd.grad(F.cross_entropy(forward(images), labels), weights)
network.double()
exact = torch.autograd.grad(F.cross_entropy(network(images.double()), labels), weights)
print(max(float((f - e).norm() / e.norm()) for f, e in zip(found, exact)))
"""
    avx2 = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", code, *blocked]
    done = subprocess.run(argv, env=avx2, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert float(done.stdout) < 0.03  # a ReLU that tips; overrun memory makes it 1 and more
