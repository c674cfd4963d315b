"""Convolutions of images side by side, against those of images alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from leanres.kernels.conv_mode import ConvMode, NetworkInMode
from leanres.kernels.tiled_conv import MAX_WIDTH, tile_layout, tiled_convolve
from leanres.models.davidnet import BranchNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import resolve
from leanres.training.device import CPU

CASES = {  # images, channels in and out, side, kernel, stride, padding
    "4 px": (7, 5, 6, 4, 3, 1, 1),
    "8 px, whole rows": (6, 5, 6, 8, 3, 1, 1),
    "7 px, one row": (3, 4, 4, 7, 3, 1, 1),
    "16 to 8 px": (9, 5, 6, 16, 3, 2, 1),
    "5 to 3 px": (9, 5, 6, 5, 3, 2, 1),
    "unpadded": (10, 3, 4, 6, 3, 1, 0),
    "2x2 by 2": (19, 3, 4, 4, 2, 2, 0),
    "5x5": (5, 3, 4, 8, 5, 1, 2),
    "1 px": (40, 3, 4, 1, 3, 1, 1),
    "large weight": (11, 512, 256, 4, 3, 1, 1),
    "large weight, unpadded": (11, 512, 256, 5, 3, 1, 0),
}
BY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def gradients(case, tiled, bias=True):
    """Output and gradients of one convolution in bfloat16; the same tensors at each call."""
    n, i, o, side, size, stride, padding = case
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(i, o, size, stride, padding, bias=bias)
    conv = NetworkInMode(conv, tiled_convolve) if tiled else conv
    images = torch.randn(n, i, side, side).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
    out.float().square().mean().backward()
    return [out, images.grad, *(p.grad for p in conv.parameters())]


@BY_CASE
@pytest.mark.parametrize("bias", [True, False])
def test_images_side_by_side_have_the_gradients_of_images_alone(case, bias):
    for ours, plain in zip(gradients(case, True, bias), gradients(case, False, bias), strict=True):
        assert ours.shape == plain.shape
        error = (ours - plain).float().norm() / plain.float().norm()
        assert error < 1e-2  # bfloat16 has 8 bits


@BY_CASE
def test_each_image_has_its_outputs_at_its_pitch(case):
    n, i, o, side, size, stride, padding = case
    images, weight = torch.empty(n, i, side, side), torch.empty(o, i, size, size)
    layout = tile_layout(images, weight, stride, padding)
    assert layout is not None
    tiled = layout.tile(images, layout.pitch, layout.extra)
    out = F.conv2d(tiled, weight, None, stride, padding)
    assert out.shape[-1] == layout.count * layout.pitch // stride


def test_untile_is_the_reverse_of_tile():
    images = torch.randn(7, 3, 4, 5)
    layout = tile_layout(images, torch.empty(2, 3, 3, 3), 1, 1)
    tiled = layout.tile(images, layout.pitch)
    assert layout.untile(tiled, 7, layout.pitch, 5).equal(images)
    assert tiled.count_nonzero() == images.count_nonzero()  # zeros between them


def test_padding_that_gives_an_image_more_outputs_than_places_is_left_to_pytorch():
    for size, stride, padding in ((2, 1, 1), (3, 1, 2), (3, 2, 2)):
        weight = torch.empty(4, 3, size, size)
        assert tile_layout(torch.empty(4, 3, 4, 4), weight, stride, padding) is None


@pytest.mark.parametrize(
    ("shape", "weight"),
    [((4, 3, 16, 16), (4, 3, 3, 3)), ((4, 3, 4, 4), (4, 3, 1, 1)), ((1, 3, 4, 4), (4, 3, 3, 3))],
    ids=[f"rows over {MAX_WIDTH} px", "1x1", "one image"],
)
def test_what_would_not_be_faster_is_left_to_pytorch(shape, weight):
    assert tile_layout(torch.empty(shape), torch.empty(weight), 1, weight[-1] // 2) is None


@pytest.mark.parametrize("context", ["no gradient", "float32"])
def test_outside_bfloat16_training_nothing_changes(context):
    conv, images = torch.nn.Conv2d(3, 4, 3, padding=1), torch.randn(5, 3, 4, 4)
    with torch.set_grad_enabled(context != "no gradient"):
        expected = conv(images)
        with ConvMode(tiled_convolve):
            assert conv(images).equal(expected)


@pytest.mark.parametrize(
    "config",
    [SpeedNetConfig((16, 32, 32)), resolve("resnet20"), BranchNetConfig((16, 32, 64, 64), 32)],
    ids=lambda config: type(config).__name__,
)
def test_a_network_is_as_near_its_float32_gradients_as_without(config, gradients_of):
    torch.manual_seed(0)
    model = config.build().to(memory_format=torch.channels_last)
    exact, plain, ours = gradients_of(model, partial(NetworkInMode, convolve=tiled_convolve))
    assert 0 < (plain - exact).norm() < 0.5 * exact.norm()
    assert (ours - exact).norm() < 1.2 * (plain - exact).norm()


def test_a_device_uses_it_where_a_cpu_trains_in_bfloat16():
    model = torch.nn.Conv2d(3, 4, 3)
    assert CPU("cpu", "bfloat16", False).training_forward(model).convolve is tiled_convolve
    in_float32 = CPU("cpu", "float32", False).training_forward(model)
    assert getattr(in_float32, "convolve", None) is not tiled_convolve
