"""3x3 convolutions with AMX, against float64 and PyTorch's max-pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from leanres.kernels import amx_conv as module
from leanres.kernels.amx_conv import (
    amx_conv,
    amx_supports,
    as_filters,
    conv_maxpool,
    grad_input,
    grad_weight,
)
from leanres.kernels.build import library

HERE = pytest.mark.skipif(library() is None, reason="no own kernels here: PyTorch's are used")
pytestmark = [HERE, pytest.mark.usefixtures("amx")]
CASES = {  # images, channels in and out, height, width
    "whole tiles": (4, 64, 96, 16, 16),
    "a speed record's first": (3, 24, 64, 31, 31),
    "7 px, a last group": (23, 96, 64, 7, 7),
    "3 px": (70, 64, 64, 3, 3),
    "1 px": (40, 32, 16, 1, 1),
    "2 px, odd channels": (5, 33, 17, 2, 2),
    "not square": (5, 17, 33, 9, 4),
    "in strips": (3, 70, 40, 41, 37),
    "in strips, many images": (50, 32, 32, 45, 20),
    "the budget's widths": (3, 100, 164, 8, 8),
    "the widest": (2, 200, 200, 4, 4),
    "an image": (2, 3, 20, 12, 12),
    "one channel to one": (1, 1, 1, 5, 5),
}
BY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
POOLED = {name: case for name, case in CASES.items() if min(case[3:]) > 1}
BY_POOLED = pytest.mark.parametrize("case", POOLED.values(), ids=POOLED)


@pytest.fixture(autouse=True)
def _no_pass_by_onednn(monkeypatch):
    monkeypatch.setattr(module, "MAX_WIDTH", 99)


def tensors(case):
    """Images, filters as they are multiplied, and a gradient of the result; bfloat16 values."""
    n, c, o, h, w = case
    torch.manual_seed(0)
    images, weight = torch.randn(n, c, h, w) + 0.3, torch.randn(o, c, 3, 3) / c**0.5
    return images.bfloat16(), as_filters(weight), torch.randn(n, o, h, w).bfloat16()


def exact(images, weight, gradient):
    """In float64: the convolution, and the gradients of its images and filters."""
    x, w = (t.detach().double().requires_grad_() for t in (images, weight))
    y = F.conv2d(x, w, padding=1)
    y.backward(gradient.double())
    return y.detach(), x.grad, w.grad


def near(ours, right, most=4e-3):  # bfloat16 has 8 bits
    assert ours.shape == right.shape
    return (ours.double() - right).norm() <= most * right.norm()


@BY_CASE
def test_it_is_a_convolution_and_so_are_its_gradients(case, threads):
    images, weight, gradient = tensors(case)
    y, dx, dw = exact(images, weight, gradient)
    x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
    out = amx_conv(x, w)
    out.backward(gradient)
    assert out.dtype == x.grad.dtype == torch.bfloat16
    assert w.grad.dtype == torch.float32
    assert near(out, y)
    assert near(x.grad, dx)
    assert near(w.grad, dw, 1e-5)  # products are exact, sums float32


@BY_POOLED
def test_conv_maxpool_is_a_convolution_and_a_max_pool(case, threads):
    images, weight, _ = tensors(case)
    n, _, o, h, w = case
    maps = amx_conv(images, weight)
    expected, places = F.max_pool2d(maps.float(), 2, return_indices=True)
    sums = torch.zeros(threads, 2, o, dtype=torch.float64)
    x = images.contiguous(memory_format=torch.channels_last)
    y, argmax = conv_maxpool(x, weight, sums)
    assert y.float().equal(expected)
    corner = places // w % 2 * 2 + places % w % 2
    assert argmax.view(n, h // 2, w // 2, o).permute(0, 3, 1, 2).equal(corner.to(torch.uint8))
    double = expected.double()
    own = torch.stack((double.sum((0, 2, 3)), double.square().sum((0, 2, 3))))
    assert (sums.sum(0) - own).norm() < 1e-5 * own.norm()


@BY_POOLED
def test_gradients_of_pooled_maps_are_those_of_their_maxima(case, threads):
    images, weight, _ = tensors(case)
    n, _, o, h, w = case
    x = images.contiguous(memory_format=torch.channels_last)
    y, argmax = conv_maxpool(x, weight, torch.zeros(threads, 2, o, dtype=torch.float64))
    dy = torch.randn(y.shape).bfloat16().contiguous(memory_format=torch.channels_last)
    unpooled = torch.zeros(n, o, h, w)
    corner = argmax.view(n, h // 2, w // 2, o).permute(0, 3, 1, 2)
    for place in range(4):
        part = unpooled[:, :, place // 2 : h // 2 * 2 : 2, place % 2 : w // 2 * 2 : 2]
        part += dy.float() * (corner == place)
    _, dx, dw = exact(images, weight, unpooled)
    assert near(grad_input(dy, argmax, weight, h, w), dx)
    assert near(grad_weight(x, dy, argmax), dw, 1e-5)


def test_the_same_images_have_the_same_result_bit_for_bit():
    images, weight, gradient = tensors((37, 48, 64, 7, 7))
    found = []
    for _ in range(3):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        out = amx_conv(x, w)
        out.backward(gradient)
        found.append((out.detach(), x.grad, w.grad))
    for again in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], again, strict=True))


def test_a_nan_reaches_its_neighbours_and_no_other_image():
    images, weight, _ = tensors((9, 32, 32, 5, 5))
    images[4, 7, 2, 2] = float("nan")
    out = amx_conv(images, weight)
    assert out[4, :, 1:4, 1:4].isnan().all()
    assert out.isnan().sum() == 32 * 9
    x = images.contiguous(memory_format=torch.channels_last)
    y, _ = conv_maxpool(x, weight, torch.zeros(torch.get_num_threads(), 2, 32, dtype=torch.float64))
    assert y[4].isnan().all()
    assert y.isnan().sum() == y[4].numel()


def test_only_the_needed_gradient_is_computed(monkeypatch):
    images, weight, gradient = tensors((3, 16, 16, 6, 6))
    _, dx, dw = exact(images, weight, gradient)
    with monkeypatch.context() as patch:
        patch.setattr(module, "grad_input", None)
        w = weight.clone().requires_grad_()
        amx_conv(images, w).backward(gradient)
    with monkeypatch.context() as patch:
        patch.setattr(module, "grad_weight", None)
        x = images.clone().requires_grad_()
        amx_conv(x, weight).backward(gradient)
    assert near(x.grad, dx)
    assert near(w.grad, dw, 1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "groups", "right"),
    [
        (3, 1, 1, 1, 1, True),
        (3, 2, 1, 1, 1, False),
        (3, 1, 0, 1, 1, False),
        (3, 1, 1, 2, 1, False),
        (3, 1, 1, 1, 2, False),
        (1, 1, 1, 1, 1, False),
    ],
)
def test_which_convolutions_it_computes(size, stride, padding, dilation, groups, right):
    weight = torch.empty(4, 4, size, size)
    assert amx_supports(weight, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups) == right
