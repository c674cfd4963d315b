"""Residual networks: blocks against plain formulas, shapes, initial weights, errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanres.errors import UserError
from leanres.models.branch_layers import DropPath
from leanres.models.resnet import (
    BasicBlock,
    PadShortcut,
    ResNetConfig,
    ShakeBlock,
    ShiftShortcut,
    WideBlock,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomised_norms(module: nn.Module) -> nn.Module:
    """In evaluation mode, with random statistics and scales in every batch norm."""
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
    block = randomised_norms(BasicBlock(3, 5, 2, ResNetConfig()))
    x = torch.randn(2, 3, 8, 8)
    inner = plain_norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.norm1).clamp(0)
    inner = plain_norm(F.conv2d(inner, block.conv2.weight, padding=1), block.norm2)
    kept = plain_norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    torch.testing.assert_close(block(x), (inner + kept).clamp(0))


def test_a_basic_block_that_keeps_the_shape_adds_its_unchanged_input():
    block = randomised_norms(BasicBlock(4, 4, 1, ResNetConfig()))
    nn.init.zeros_(block.norm2.weight)
    nn.init.zeros_(block.norm2.bias)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(0))


def test_a_wide_block_normalises_first_and_projects_the_activated_input():
    block = randomised_norms(WideBlock(3, 5, 2, ResNetConfig(block="wide", block_dropout=0.3)))
    x = torch.randn(2, 3, 8, 8)
    active = plain_norm(x, block.norm1).clamp(0)
    inner = F.conv2d(active, block.conv1.weight, stride=2, padding=1)
    inner = F.conv2d(plain_norm(inner, block.norm2).clamp(0), block.conv2.weight, padding=1)
    kept = F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), inner + kept)


def test_a_wide_block_that_keeps_the_shape_adds_its_unchanged_input():
    block = randomised_norms(WideBlock(4, 4, 1, ResNetConfig(block="wide")))
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_the_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = torch.randn(2, 3, 6, 8)
    out = PadShortcut(3, 5, 2)(x)
    assert out.shape == (2, 5, 3, 4)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in out.shape)).tolist():
        assert out[n, c, i, j] == (x[n, c, 2 * i, 2 * j] if c < 3 else 0)


def test_the_second_half_of_the_shift_shortcut_takes_the_pixels_up_and_left():
    shortcut = ShiftShortcut(3, 4, 2)
    x = torch.randn(2, 3, 6, 8)
    out = shortcut(x)
    assert out.shape == (2, 4, 3, 4)
    here, beside = (conv.weight[:, :, 0, 0] for conv in (shortcut.here, shortcut.beside))
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        up_left = x[:, :, 2 * i - 1, 2 * j - 1] if i and j else torch.zeros(2, 3)
        torch.testing.assert_close(out[:, :2, i, j], x[:, :, 2 * i, 2 * j] @ here.T)
        torch.testing.assert_close(out[:, 2:, i, j], up_left @ beside.T)


def test_a_shake_block_in_evaluation_is_the_mean_of_two_branches_plus_a_shortcut():
    block = randomised_norms(ShakeBlock(3, 4, 2, ResNetConfig(block="shake", shortcut="shift")))
    x = torch.randn(2, 3, 8, 8)
    total = plain_norm(block.shortcut[1](x.clamp(0)), block.shortcut[2])
    for branch in (block.branch1, block.branch2):
        inner = F.conv2d(x.clamp(0), branch[1].weight, stride=2, padding=1)
        inner = F.conv2d(plain_norm(inner, branch[2]).clamp(0), branch[4].weight, padding=1)
        total = total + plain_norm(inner, branch[5]) / 2
    torch.testing.assert_close(block(x), total)


def test_a_shake_network_has_a_bare_norm_after_its_stem_and_a_relu_before_its_pool():
    model = ResNetConfig((4, 6), (1, 1), block="shake").build()
    assert [type(layer) for layer in model.stem] == [nn.Conv2d, nn.BatchNorm2d]
    assert [type(layer) for layer in model.norm] == [nn.ReLU]


@pytest.mark.parametrize("block", ["basic", "wide", "shake"])
def test_stochastic_depth_rises_linearly_to_the_last_block(block):
    model = ResNetConfig((4, 6), (2, 3), block=block, drop_path=0.5).build()
    rates = [m.p for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("block", ["basic", "wide", "shake"])
def test_a_dropped_branch_leaves_the_shortcut(block):
    model = ResNetConfig((4,), (1,), block=block, drop_path=0.99).build()
    made = model.stages[0][0]
    x = torch.rand(64, 4, 8, 8)
    kept = x.clamp(0) if block == "basic" else x
    same = [torch.equal(a, b) for a, b in zip(made(x), kept, strict=True)]
    assert sum(same) > 55


@pytest.mark.parametrize("block", ["basic", "wide", "shake"])
def test_squeeze_and_excitation_ends_each_branch(block):
    config = ResNetConfig((8, 8), (1, 1), block=block)
    model, plain = (replace(config, squeeze=n).build() for n in (4, 0))
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * ((8 * 2 + 2) + (2 * 8 + 8))
    made = randomised_norms(model.stages[0][0])
    nn.init.constant_(made.tail[0].excite.bias, -100)  # a scale of 0 leaves only the shortcut
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(made(x), x)


@pytest.mark.parametrize(("stem", "sides"), [("cifar", [32, 16, 8]), ("imagenet", [8, 4, 2])])
def test_each_stage_after_the_first_halves_the_map(stem, sides):
    model = ResNetConfig((4, 5, 6), (1, 2, 1), stem=stem).build().eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    shapes = [(x := stage(x)).shape[1:] for stage in model.stages]
    assert shapes == [(width, side, side) for width, side in zip((4, 5, 6), sides, strict=True)]


@pytest.mark.parametrize("size", [32, 48])
def test_outputs_are_raw_logits_for_any_image_size(size):
    model = ResNetConfig((4, 6), (1, 1), num_classes=7).build().eval()
    logits = model(torch.randn(3, 3, size, size))
    assert logits.shape == (3, 7)
    assert not torch.allclose(logits.exp().sum(1), torch.ones(3))


def test_the_average_pool_covers_the_whole_last_map():
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


def test_kaiming_initialises_convolutions_and_the_linear_by_fan_out_with_zero_bias():
    model = ResNetConfig((64, 96), (1, 1), init="kaiming").build()
    conv = model.stages[1][0].conv1.weight
    assert spread(conv) == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)
    assert spread(model.linear.weight) == pytest.approx(math.sqrt(2 / 10), rel=0.1)
    assert not model.linear.bias.any()


def test_kaiming_convs_keeps_pytorchs_weights_of_the_linear():
    model = ResNetConfig((64, 96), (1, 1), init="kaiming-convs").build()
    conv = model.stages[1][0].conv1.weight
    assert spread(conv) == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)
    assert model.linear.weight.abs().max() <= 1 / math.sqrt(96)
    assert not model.linear.bias.any()


def test_the_default_initialisation_is_pytorchs():
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
        ({"widths": (), "depths": ()}, "0 widths but 0 depths: give one of each"),
        ({"widths": 16}, "widths = 16: give a list of whole numbers from 1 to 65536"),
        ({"widths": (4, 0, 6)}, "widths = (4, 0, 6): give a list of whole numbers"),
        ({"depths": (1, 2.5, 1)}, "depths = (1, 2.5, 1): give a list of whole numbers"),
        ({"stem_width": 0}, "stem_width = 0: give a whole number from 1 to 65536, or nothing"),
        ({"stem": "cifr"}, "no stem 'cifr'; did you mean 'cifar'?"),
        ({"stem": 3}, "stem = 3: give a name"),
        ({"block": "bottleneck"}, "there are: basic, shake, wide"),
        ({"shortcut": "zero"}, "there are: pad, projection, shift"),
        ({"widths": (8, 7, 8), "shortcut": "shift"}, "halves the widths (8, 7, 8)"),
        ({"drop_path": 1.0}, "drop_path = 1.0"),
        ({"squeeze": -1}, "squeeze = -1"),
        ({"init": "xavier"}, "no init 'xavier'"),
        ({"dropout": 1.0}, "dropout = 1.0: give a number from 0 to 0.999"),
        ({"dropout": "0.5"}, "dropout = '0.5'"),
        ({"block_dropout": 0.3}, "block_dropout needs block='wide'"),
        ({"num_classes": 1}, "num_classes = 1: give a whole number from 2 to 1e+06"),
        ({"num_classes": True}, "num_classes = True"),
        ({"widths": (8, 6, 9), "shortcut": "pad"}, "shortcut 'pad' cannot narrow (8, 8, 6, 9)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        ResNetConfig(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
