"""Fused layers, against the layers one by one, and the networks that are made of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanres.kernels.build import library
from leanres.kernels.fuse import fuse_layers
from leanres.kernels.fused_layers import (
    FusedAddNormAct,
    FusedConvPoolNormAct,
    FusedGELU,
    FusedPoolNormAct,
)
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import resolve
from leanres.training.device import CPU

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler for fused.c here")
ACTS = {"none": None, "relu": nn.ReLU(), "gelu": nn.GELU()}
MAPS = {  # images, channels, height, width
    "whole vectors": (6, 64, 8, 8),
    "odd sides": (5, 48, 7, 9),
    "few channels": (4, 3, 6, 4),
    "one channel more": (3, 33, 5, 5),
    "many rows": (20, 16, 16, 16),
    "a pixel": (9, 40, 2, 2),
}


def maps(shape, seed=0):
    torch.manual_seed(seed)
    drawn = 0.5 + 2 * torch.randn(shape)
    return drawn.bfloat16().to(memory_format=torch.channels_last)


def norm(channels):
    torch.manual_seed(2)
    layer = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    nn.init.normal_(layer.weight, 1, 0.3)
    nn.init.normal_(layer.bias, 0, 0.5)
    return layer


def plain(layer, act, pool, x):
    x = F.max_pool2d(x, 2) if pool else x
    x = layer(x)
    return x if act is None else act(x)


def compute(function, layer, x, dtype):
    """Output and gradients, in float32."""
    own = x.detach().to(dtype).requires_grad_()
    out = function(own)
    torch.manual_seed(3)
    out.backward(torch.randn(out.shape).bfloat16().to(out.dtype))
    found = [out, own.grad, layer.weight.grad, layer.bias.grad]
    found += [layer.running_mean, layer.running_var, layer.num_batches_tracked]
    return [t.detach().float() for t in found]


@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("pool", [False, True], ids=["", "pooled"])
def test_a_fused_layer_computes_what_the_layers_compute_one_by_one(shape, act, pool, threads):
    x, layer = maps(shape), norm(shape[1])
    own = copy.deepcopy(layer)
    exact = compute(lambda x: plain(layer, act, pool, x), layer, x, torch.float32)
    ours = compute(FusedPoolNormAct(own, act, pool), own, x, torch.bfloat16)
    for name, a, b in zip(["out", "x", "weight", "bias"], exact, ours, strict=False):
        assert a.shape == b.shape
        assert (a - b).norm() < 5e-3 * a.norm() + 1e-6, name  # bfloat16 has 8 bits
    for a, b in zip(exact[4:], ours[4:], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=["relu", "gelu"])
def test_a_residual_sum_is_what_the_layers_compute_one_by_one(shape, act, threads):
    x, other, layer = maps(shape), maps(shape, 5), norm(shape[1])
    own = copy.deepcopy(layer)
    first, second = other.float().requires_grad_(), other.clone().requires_grad_()
    exact = compute(lambda x: act(layer(x) + first), layer, x, torch.float32)
    module = FusedAddNormAct(own, act)
    ours = compute(lambda x: module(x, second), own, x, torch.bfloat16)
    for a, b in zip([*exact, first.grad], [*ours, second.grad.float()], strict=True):
        assert (a - b).norm() < 5e-3 * a.norm() + 1e-6


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_with_their_convolution_too_they_compute_the_same(shape, act):
    torch.manual_seed(1)
    conv = nn.Conv2d(shape[1], 40, 3, padding=1, bias=False)
    conv.weight.data = conv.weight.data.bfloat16().float()
    own_conv, layer = copy.deepcopy(conv), norm(40)
    own, x = copy.deepcopy(layer), maps(shape)
    # It rounds to bfloat16 before it pools: which of four is the largest depends on it.
    rounded = lambda x: conv(x) + (conv(x).bfloat16().float() - conv(x)).detach()  # noqa: E731
    exact = compute(lambda x: plain(layer, act, True, rounded(x)), layer, x, torch.float32)
    module = FusedConvPoolNormAct(own_conv, own, act)
    with torch.autocast("cpu", torch.bfloat16):
        ours = compute(module, own, x, torch.bfloat16)
    for a, b in zip([*exact[:4], conv.weight.grad], [*ours[:4], own_conv.weight.grad], strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() < 1e-2 * a.norm() + 1e-6
    for a, b in zip(exact[4:], ours[4:], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("context", ["float32", "no gradient", "evaluating"])
def test_other_calls_of_a_convolution_are_pytorchs_own(context):
    conv, layer = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
    own, act = copy.deepcopy(layer), nn.GELU()
    layer.train(context != "evaluating")
    own.train(context != "evaluating")
    with (
        torch.set_grad_enabled(context != "no gradient"),
        torch.autocast("cpu", torch.bfloat16, enabled=context != "float32"),
    ):
        x = torch.randn(4, 8, 6, 6)
        expected = plain(layer, act, True, conv(x))
        assert FusedConvPoolNormAct(conv, own, act)(x).equal(expected)
    assert own.running_mean.equal(layer.running_mean)


def test_the_same_batch_has_the_same_result_bit_for_bit():
    x = maps((40, 24, 9, 9))
    found = []
    for _ in range(3):
        layer = norm(24)
        found.append(compute(FusedPoolNormAct(layer, nn.GELU(), True), layer, x, torch.bfloat16))
    for again in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], again, strict=True))


def test_gelu_is_exact_up_to_the_rounding_of_a_bfloat16():
    x = torch.linspace(-12, 12, 9001).bfloat16().view(1, 1, -1, 1).repeat(1, 2, 1, 1)
    ours, exact = x.clone().requires_grad_(), x.float().requires_grad_()
    for out in (FusedGELU()(ours), F.gelu(exact)):
        out.backward(torch.ones_like(out))
    for a, b in ((FusedGELU()(x), F.gelu(x.float())), (ours.grad, exact.grad)):
        assert ((a.float() - b).abs() <= b.abs() / 256 + 6e-4).all()


def test_gelu_in_evaluation_is_pytorchs_own():
    x = torch.linspace(-12, 12, 9001).bfloat16().view(1, 1, -1, 1)
    assert FusedGELU().eval()(x).equal(F.gelu(x))
    assert not FusedGELU()(x).equal(F.gelu(x))  # in training it is a polynomial


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("place", [0, 1, 8, 9])
def test_a_nan_is_not_lost(act, place):
    x = maps((2, 16, 8, 8))
    x[0, 5].view(-1)[place] = float("nan")
    out = FusedPoolNormAct(norm(16), act, True)(x)
    assert out[:, 5].isnan().all()
    assert not out[:, :5].isnan().any()


@pytest.mark.parametrize("context", ["float32", "no gradient", "evaluating"])
def test_other_calls_are_pytorchs_own(context):
    x = maps((4, 8, 6, 6)).to(torch.float32 if context == "float32" else torch.bfloat16)
    layer, act = norm(8), nn.GELU()
    own = copy.deepcopy(layer)
    layer.train(context != "evaluating")
    own.train(context != "evaluating")
    with torch.set_grad_enabled(context != "no gradient"):
        expected = plain(layer, act, True, x)
        assert FusedPoolNormAct(own, act, True)(x).equal(expected)
    assert own.running_mean.equal(layer.running_mean)


NETWORKS = {  # how many batch norms are fused with the layers around them
    "speednet": 6,
    SpeedNetConfig((32, 64, 64), depth=3, residual=True, activation="gelu"): 9,
    "resnet20": 19,
    "custom-resnet": 8,
    "resnet-custom": 8,
    "resnet18-imagenet-stem": 20,
}


@pytest.mark.parametrize(("name", "count"), NETWORKS.items(), ids=str)
def test_every_batch_norm_of_a_network_is_fused(name, count):
    kinds = [FusedPoolNormAct, FusedConvPoolNormAct, FusedAddNormAct]
    assert sum(type(m) in kinds for m in fuse_layers(resolve(name).build()).modules()) == count


@pytest.mark.parametrize("name", [*NETWORKS][:3], ids=str)  # the others' layers are among theirs
def test_a_network_is_as_near_its_float32_gradients_as_without(name, gradients_of):
    torch.manual_seed(0)
    model = resolve(name).build().to(memory_format=torch.channels_last)
    exact, unfused, ours = gradients_of(model, fuse_layers)
    assert 0 < (unfused - exact).norm() < 0.7 * exact.norm()
    assert (ours - exact).norm() < 1.2 * (unfused - exact).norm()


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(widths=(8, 16), depths=(1, 1), block="wide", block_dropout=0.1),
        ResNetConfig(widths=(8, 16), depths=(1, 1), block="shake", shortcut="shift"),
        ResNetConfig(widths=(8, 16), depths=(1, 1), squeeze=4, drop_path=0.2),
        SpeedNetConfig(widths=(8, 16), residual=True, activation="gelu"),
        SpeedNetConfig(widths=(8, 16), activation="silu"),
        SpeedNetConfig(widths=(8, 16), depth=3, activation="relu"),
    ],
    ids=["wide", "shake", "squeeze", "residual", "silu", "relu"],
)
def test_every_kind_of_network_computes_the_same_in_float32(config):
    # In float32 every layer is PyTorch's: this tests the clone's wiring alone.
    torch.manual_seed(0)
    model = config.build()
    clone = fuse_layers(copy.deepcopy(model))
    assert any(isinstance(m, FusedPoolNormAct | FusedAddNormAct) for m in clone.modules())
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    expected = model.train()(images)
    torch.manual_seed(1)
    assert clone(images).equal(expected)


def test_the_clone_trains_the_network_itself():
    model = resolve("resnet20").build()
    clone = fuse_layers(model)
    assert list(map(id, clone.parameters())) == list(map(id, model.parameters()))
    assert list(map(id, clone.buffers())) == list(map(id, model.buffers()))
    assert not any(isinstance(m, FusedPoolNormAct) for m in model.modules())


def test_without_own_kernels_a_network_is_left_alone(reload_kernels):
    reload_kernels.setattr("shutil.which", lambda name: None)
    model = resolve("resnet20").build()
    assert fuse_layers(model) is model


def test_a_device_uses_it_where_a_cpu_trains_in_bfloat16():
    model = resolve("resnet20").build()
    for precision, used in (("bfloat16", True), ("float32", False)):
        forward = CPU("cpu", precision, False).training_forward(model)
        assert any(isinstance(m, FusedPoolNormAct) for m in forward.modules()) is used
