"""Layers of residual branches against plain formulas and an explicit backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanres.models.branch_layers import DropPath, ShakeShake, SqueezeExcite, is_random


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_squeeze_and_excitation_scales_each_channel_by_the_image():
    layer = SqueezeExcite(6, 2)
    x = torch.randn(4, 6, 5, 5)
    out = layer(x)
    for image, scaled in zip(x, out, strict=True):
        pooled = torch.stack([channel.sum() / 25 for channel in image])
        inner = (layer.squeeze.weight @ pooled + layer.squeeze.bias).clamp(0)
        scale = 1 / (1 + (-(layer.excite.weight @ inner + layer.excite.bias)).exp())
        expected = [s * channel for s, channel in zip(scale, image, strict=True)]
        torch.testing.assert_close(scaled, torch.stack(expected))


def test_a_reduction_beyond_the_width_leaves_one_hidden_unit():
    assert SqueezeExcite(4, 16).squeeze.weight.shape == (1, 4)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    x = torch.rand(4000, 2, 3, 3) + 0.5
    out = DropPath(0.3).train()(x)
    kept = (out != 0).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1))
    assert kept.any(1).float().mean() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(out[kept.any(1)], x[kept.any(1)] / 0.7)


def test_stochastic_depth_changes_nothing_in_evaluation():
    x = torch.rand(4, 2, 3, 3)
    assert DropPath(0.9).eval()(x) is x


class Explicit(torch.autograd.Function):
    """Shake-shake with its two passes written out."""

    @staticmethod
    def forward(ctx, first, second, forward, backward):
        ctx.save_for_backward(backward)
        return forward * first + (1 - forward) * second

    @staticmethod
    def backward(ctx, gradient):
        (share,) = ctx.saved_tensors
        return share * gradient, (1 - share) * gradient, None, None


def test_shake_shake_mixes_with_one_weight_forward_and_another_backward():
    branches = [torch.randn(5, 2, 3, 3, requires_grad=True) for _ in range(2)]
    outer = torch.randn(5, 2, 3, 3)
    torch.manual_seed(7)
    out = ShakeShake().train()(*branches)
    found = torch.autograd.grad((out * outer).sum(), branches)
    torch.manual_seed(7)
    shares = torch.rand(2, 5, 1, 1, 1)
    expected = Explicit.apply(*branches, *shares)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, torch.autograd.grad((expected * outer).sum(), branches))
    assert len(shares.unique()) == 10  # they differ between images and directions


def test_shake_shake_is_the_mean_in_evaluation():
    first, second = torch.randn(2, 5, 2, 3, 3)
    torch.testing.assert_close(ShakeShake().eval()(first, second), (first + second) / 2)


@pytest.mark.parametrize(
    ("module", "random"),
    [
        (ShakeShake(), True),
        (DropPath(0.1), True),
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.ReLU(), False),
    ],
)
def test_modules_that_draw_random_numbers_are_known(module, random):
    assert is_random(module) is random
