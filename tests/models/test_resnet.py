"""Staged residual networks: blocks against plain formulas, shapes, draws, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanres.errors import UserError
from leanres.models.resnet import BasicBlock, PadShortcut, ResNetConfig, WideBlock


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def settled(module: nn.Module) -> nn.Module:
    """In evaluation mode, with batch statistics and scales unlike those of a fresh norm."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.running_var):
                nn.init.uniform_(values, 0.5, 2.0)
            for values in (norm.bias, norm.running_mean):
                nn.init.normal_(values)
    return module.eval()


def plain_norm(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def test_a_basic_block_is_two_convolutions_a_projected_shortcut_and_a_relu():
    block = settled(BasicBlock(3, 5, 2, ResNetConfig()))
    x = torch.randn(2, 3, 8, 8)
    inner = plain_norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.norm1).clamp(0)
    inner = plain_norm(F.conv2d(inner, block.conv2.weight, padding=1), block.norm2)
    kept = plain_norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    torch.testing.assert_close(block(x), (inner + kept).clamp(0))


def test_a_basic_block_that_keeps_its_shape_adds_its_input_as_it_is():
    block = settled(BasicBlock(4, 4, 1, ResNetConfig()))
    nn.init.zeros_(block.norm2.weight)
    nn.init.zeros_(block.norm2.bias)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(0))


def test_a_wide_block_normalises_first_and_projects_the_activated_input():
    block = settled(WideBlock(3, 5, 2, ResNetConfig(block="wide", block_dropout=0.3)))
    x = torch.randn(2, 3, 8, 8)
    active = plain_norm(x, block.norm1).clamp(0)
    inner = F.conv2d(active, block.conv1.weight, stride=2, padding=1)
    inner = F.conv2d(plain_norm(inner, block.norm2).clamp(0), block.conv2.weight, padding=1)
    kept = F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), inner + kept)


def test_a_wide_block_that_keeps_its_shape_adds_the_raw_input():
    block = settled(WideBlock(4, 4, 1, ResNetConfig(block="wide")))
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_the_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = torch.randn(2, 3, 6, 8)
    out = PadShortcut(3, 5, 2)(x)
    assert out.shape == (2, 5, 3, 4)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in out.shape)).tolist():
        assert out[n, c, i, j] == (x[n, c, 2 * i, 2 * j] if c < 3 else 0)


@pytest.mark.parametrize(("stem", "sides"), [("cifar", [32, 16, 8]), ("imagenet", [8, 4, 2])])
def test_each_stage_after_the_first_halves_the_map(stem, sides):
    model = ResNetConfig((4, 5, 6), (1, 2, 1), stem=stem).build().eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    shapes = [(x := stage(x)).shape[1:] for stage in model.stages]
    assert shapes == [(width, side, side) for width, side in zip((4, 5, 6), sides, strict=True)]


@pytest.mark.parametrize("size", [32, 48])
def test_logits_come_out_raw_whatever_the_image_size(size):
    model = ResNetConfig((4, 6), (1, 1), num_classes=7).build().eval()
    logits = model(torch.randn(3, 3, size, size))
    assert logits.shape == (3, 7)
    assert not torch.allclose(logits.exp().sum(1), torch.ones(3))


def test_the_average_pool_covers_what_is_left_as_the_table_has_it():
    model = ResNetConfig((4, 6, 8), (1, 1, 1)).build().eval()
    x = torch.randn(2, 3, 32, 32)
    maps = model.stages(model.stem(x))
    torch.testing.assert_close(model(x), model.linear(F.avg_pool2d(maps, 8).flatten(1)))


def test_dropout_acts_before_the_linear_and_in_training_only():
    model = ResNetConfig((64,), (1,), dropout=0.5).build()
    seen = []
    model.linear.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x = torch.randn(64, 3, 8, 8)
    model(x)
    model.eval()(x)
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6
    assert (seen[1] == 0).float().mean() < 0.1


def test_only_the_linear_has_a_bias_beside_the_norms():
    model = ResNetConfig((4, 6), (1, 1)).build()
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert model.linear.bias is not None


def spread(weight: torch.Tensor) -> float:
    return weight.std().item()


def test_kaiming_draws_convolutions_and_the_linear_by_fan_out_with_zero_bias():
    model = ResNetConfig((64, 96), (1, 1), init="kaiming").build()
    conv = model.stages[1][0].conv1.weight
    assert spread(conv) == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)
    assert spread(model.linear.weight) == pytest.approx(math.sqrt(2 / 10), rel=0.1)
    assert not model.linear.bias.any()


def test_kaiming_convs_leaves_the_linear_weights_as_pytorch_draws_them():
    model = ResNetConfig((64, 96), (1, 1), init="kaiming-convs").build()
    conv = model.stages[1][0].conv1.weight
    assert spread(conv) == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)
    assert model.linear.weight.abs().max() <= 1 / math.sqrt(96)
    assert not model.linear.bias.any()


def test_the_default_draw_is_that_of_pytorch():
    model = ResNetConfig((8,), (1,)).build()
    torch.manual_seed(0)
    assert torch.equal(model.stem[0].weight, nn.Conv2d(3, 8, 3, bias=False).weight)


def test_lists_become_tuples_so_that_equal_configs_are_equal():
    assert ResNetConfig([4, 6], [1, 2]) == ResNetConfig((4, 6), (1, 2))
    assert len({ResNetConfig([4, 6], [1, 2]), ResNetConfig((4, 6), (1, 2))}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (4, 5, 6), "depths": (1, 1)}, "3 widths but 2 depths: give one of each"),
        ({"widths": ()}, "widths is (): give one whole number per stage"),
        ({"widths": 16}, "widths is 16"),
        ({"widths": (4, 0, 6)}, "one of widths is 0: give a whole number of at least 1"),
        ({"depths": (1, 2.5, 1)}, "one of depths is 2.5"),
        ({"stem_width": 0}, "stem_width is 0"),
        ({"stem": "cifr"}, "no stem 'cifr'; did you mean 'cifar'?"),
        ({"block": "bottleneck"}, "there are: basic, wide"),
        ({"shortcut": "zero"}, "there are: pad, projection"),
        ({"init": "xavier"}, "no init 'xavier'"),
        ({"dropout": 1.0}, "dropout is 1.0: give a share of at least 0 and below 1"),
        ({"dropout": "0.5"}, "dropout is '0.5'"),
        ({"block_dropout": 0.3}, "block_dropout needs block='wide'"),
        ({"num_classes": 1}, "num_classes is 1: give a whole number of at least 2"),
        ({"num_classes": True}, "num_classes is True"),
        ({"widths": (8, 6, 9), "shortcut": "pad"}, "shortcut 'pad' cannot narrow (8, 8, 6, 9)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        ResNetConfig(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
