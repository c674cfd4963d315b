"""Costs: counts equal PyTorch's own, receptive fields equal the support of a gradient."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from leanres.errors import UserError
from leanres.models.cost import count_params, summarize
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import MODELS


def thin(config):
    """The same layers with a few channels each: receptive fields do not depend on widths."""
    return replace(config, widths=tuple(range(2, 2 + 2 * len(config.widths), 2)))


@cache
def cost(name):
    """The summary of a named model, computed once for all tests."""
    return summarize(MODELS[name].config)


# --- counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_macs_are_half_of_what_the_flop_counter_of_pytorch_finds(name):
    with torch.device("meta"):
        model, images = MODELS[name].config.build().eval(), torch.empty(1, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    summary = cost(name)
    assert 2 * summary.macs == counter.get_total_flops()
    assert summary.macs == sum(row.macs for row in summary.rows)


@pytest.mark.parametrize("name", MODELS)
def test_params_are_the_sum_over_the_parameters_and_over_the_rows(name):
    with torch.device("meta"):
        expected = sum(p.numel() for p in MODELS[name].config.build().parameters())
    summary = cost(name)
    assert summary.params == expected == sum(row.params for row in summary.rows)


def test_the_macs_of_a_small_network_are_those_computed_by_hand():
    config = ResNetConfig((4, 6), (1, 1))
    stem = 32 * 32 * 4 * 3 * 9
    first = 2 * 32 * 32 * 4 * 4 * 9
    second = 16 * 16 * (6 * 4 * 9 + 6 * 6 * 9 + 6 * 4)
    assert summarize(config).macs == stem + first + second + 6 * 10


def test_macs_grow_with_the_image_and_params_do_not():
    small, large = (summarize(MODELS["resnet20"].config, (3, s, s)) for s in (32, 64))
    head = 64 * 10
    assert large.macs - head == 4 * (small.macs - head)
    assert large.params == small.params


class Twice(nn.Module):
    """One convolution called twice, and a second one that shares its weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.tied = nn.Conv2d(3, 3, 3, padding=1)
        self.tied.weight = self.conv.weight

    def forward(self, x):
        return self.tied(self.conv(self.conv(x))).mean((2, 3))


def test_shared_layers_are_counted_once_in_params_and_each_time_in_macs():
    summary = summarize(Twice())
    assert summary.params == 3 * 3 * 9 + 3 + 3
    assert [row.params for row in summary.rows] == [3 * 3 * 9 + 3, 0, 3]
    assert summary.macs == 3 * (32 * 32 * 3 * 3 * 9)


def test_frozen_parameters_count_and_buffers_do_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)
    assert count_params(model) == summarize(model).params == 4 * 3 * 9 + 2 * 4


def test_parameters_that_nothing_uses_get_a_row_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    model.register_parameter("spare", nn.Parameter(torch.zeros(5)))
    rows = summarize(model).rows
    assert [(row.name, row.params) for row in rows] == [("0", 12), ("(never used)", 5)]


def test_weights_used_by_the_parent_module_count_there():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.max_pool2d(F.conv2d(x, self.conv.weight), 2)

    (row, unused) = summarize(Direct()).rows
    assert (row.kind, row.params, row.macs) == ("Direct", 4 * 3 * 9, 30 * 30 * 4 * 3 * 9)
    assert unused.params == 4


def test_there_is_a_row_for_each_layer_that_runs():
    rows = {row.name: row for row in summarize(MODELS["resnet20"].config).rows}
    conv = rows["stages.1.0.conv1"]
    assert (conv.kind, conv.shape, conv.params) == ("Conv2d", (32, 16, 16), 32 * 16 * 9)
    assert conv.macs == conv.params * 16 * 16
    assert rows["stages.1.0.shortcut"].kind == "PadShortcut"
    assert rows["linear"].shape == (10,)


def test_a_given_module_is_not_changed():
    torch.manual_seed(0)
    model = ResNetConfig((4, 6), (1, 1)).build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summary = summarize(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert summary == summarize(ResNetConfig((4, 6), (1, 1)))


def test_a_network_in_half_precision_is_counted_as_well():
    model = ResNetConfig((4, 6), (1, 1)).build().to(torch.bfloat16)
    assert summarize(model) == summarize(ResNetConfig((4, 6), (1, 1)))


# --- receptive fields -----------------------------------------------------------------------


class Linearised(nn.Module):
    """An average pool in place of a max-pool, whose gradient reaches one pixel only."""

    def __init__(self, pool):
        super().__init__()
        self.sizes = (pool.kernel_size, pool.stride, pool.padding)

    def forward(self, x):
        return F.avg_pool2d(x, *self.sizes)


def positive(model: nn.Module) -> nn.Module:
    """The model with equal positive weights and no max, so that no dependence cancels out."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, Linearised(child))
    for p in model.parameters():
        nn.init.constant_(p, 1 / max(1, p[0].numel()))
    return model.double().eval()


def support(model: nn.Module, size: int, positions: int = 1) -> int:
    """Longer side of the box of pixels with a gradient from `positions`^2 central positions.

    The map is the one that `model.pool` reads; the image has `size` pixels a side.
    """
    maps = []
    model.pool.register_forward_pre_hook(lambda _module, args: maps.append(args[0]))
    images = torch.ones(1, 3, size, size, dtype=torch.double, requires_grad=True)
    model(images)
    first = maps[0].shape[-1] // 2 - positions // 2
    rows = slice(first, first + positions)
    (grad,) = torch.autograd.grad(maps[0][..., rows, rows].sum(), images)
    sides = [grad.abs().sum(dim).nonzero() for dim in ((0, 1, 2), (0, 1, 3))]
    assert all(side.min() > 0 and side.max() < size - 1 for side in sides)  # not cut off
    return max(int(side.max() - side.min()) + 1 for side in sides)


@pytest.mark.parametrize("name", MODELS)
def test_the_receptive_field_is_the_support_of_the_gradient(name):
    config = thin(MODELS[name].config)
    summary = cost(name)
    size = (summary.receptive_field + 95) // 32 * 32
    assert support(positive(config.build()), size) == summary.receptive_field


@pytest.mark.parametrize("name", ["custom-resnet", "resnet-custom", "resnet20", "speednet"])
def test_with_the_global_pool_it_is_the_support_of_the_gradient_of_the_whole_map(name):
    config = thin(MODELS[name].config)
    side = {"custom-resnet": 2, "resnet-custom": 4, "resnet20": 8}.get(name)
    if side is None:  # the network may change: take the map from its own pool
        sides = []
        model = config.build().eval()
        model.pool.register_forward_pre_hook(lambda _m, args: sides.append(args[0].shape[-1]))
        model(torch.zeros(1, 3, 32, 32))
        (side,) = sides
    summary = cost(name)
    size = (summary.global_receptive_field + 160) // 32 * 32
    assert support(positive(config.build()), size, side) == summary.global_receptive_field


def test_custom_resnet_has_receptive_fields_of_38_46_with_its_pool_and_122_chained():
    summary = summarize(MODELS["custom-resnet"].config)
    assert (summary.receptive_field, summary.global_receptive_field) == (38, 46)
    chain = dict.fromkeys(row.chained_receptive_field for row in summary.rows)
    assert list(chain) == [3, 5, 8, 12, 14, 22, 34, 50, 74, 106, 122]
    assert summary.chained_receptive_field == 122


def test_without_strided_branches_the_chained_field_is_the_exact_one():
    summary = summarize(MODELS["resnet20"].config)  # its shortcuts are slices, not windows
    assert summary.chained_receptive_field == summary.receptive_field == 81


class Functional(nn.Module):
    """A network of functions; the oracle needs the name `pool`."""

    def __init__(self, forward):
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.function = forward

    def forward(self, x):
        return self.pool(self.function(self.first(x))).flatten(1)


WEIGHT = torch.ones(2, 2, 3, 3)


def conv(x, **settings):
    return F.conv2d(x, WEIGHT.to(x), **settings)


FUNCTIONS = {
    "dilation": lambda x: conv(x, dilation=3, padding=3),
    "groups": lambda x: F.conv2d(x, WEIGHT[:, :1].to(x), groups=2),
    "a long window": lambda x: F.conv2d(x, torch.ones(2, 2, 1, 7).to(x)),
    "concatenation": lambda x: conv(torch.cat((conv(x, padding=1), x), 1)[:, 1:3]),
    "a shifted slice": lambda x: conv(x, padding=1) + F.pad(x, (4, 0, 0, 0))[:, :, :, :-4],
    "a slice from the end": lambda x: conv(x)[:, :, -8:, -8:],
    "strided slices": lambda x: conv(x[:, :, 1::2, ::2]) + conv(x, stride=2)[:, :, :-1, :-1],
    "an average pool": lambda x: F.avg_pool2d(conv(x), 3, 2, 1),
    "branches of unlike depth": lambda x: conv(x) + conv(conv(x, padding=1)),
    "an adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (x.shape[-2] // 4, x.shape[-1] // 4)),
    "activations": lambda x: F.hardswish(F.silu(conv(x)) * F.gelu(conv(x))),
    "channels in groups": lambda x: conv((2 * x.unflatten(1, (2, 1))).flatten(1, 2)),
    "a split of channels": lambda x: conv(torch.cat(x.split(1, 1)[::-1], 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_without_a_module_are_followed(name):
    model = Functional(FUNCTIONS[name])
    assert summarize(model).receptive_field == support(positive(model), 64)


def test_with_squeeze_and_excitation_every_position_depends_on_the_whole_image():
    model = Functional(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid())
    assert summarize(model).receptive_field == 32 + 2  # and the padding of the first convolution


def test_a_linear_layer_depends_on_the_whole_flattened_map():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 10))
    summary = summarize(model)
    assert (summary.receptive_field, summary.global_receptive_field) == (3, 32)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: F.interpolate(x, scale_factor=2), "aten.upsample_nearest2d"),
        (lambda x: F.conv_transpose2d(x, WEIGHT.to(x)), "aten.convolution"),
        (lambda x: x.flip(-1), "aten.flip"),
        (lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2), "aten."),
        (lambda x: torch.cat((x, x), 2), "aten.cat"),
        (lambda x: x[:, :, ::2, ::2] + x[:, :, :16, :16], "aten.add"),
        (lambda x: x.mean(3).unsqueeze(3), "aten.mean"),
    ],
)
def test_an_operator_without_a_rule_is_named_and_prevents_the_receptive_field_alone(
    function, operator
):
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(conv, Functional(function), nn.AdaptiveAvgPool2d(1))
    summary = summarize(net)
    assert re.match(f"cannot follow .* {operator}", summary.unknown)
    fields = ("receptive_field", "global_receptive_field", "chained_receptive_field")
    assert [getattr(summary, name) for name in fields] == [None, None, None]
    assert summary.params == sum(p.numel() for p in net.parameters())
    assert summary.macs >= 3 * 27 * 32 * 32
    assert summary.rows[0].receptive_field == 3
    assert summary.rows[-1].receptive_field is None


def test_images_that_do_not_fit_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"images of \(3, 4, 4\) do not fit this network") as caught:
        summarize(MODELS["custom-resnet"].config, (3, 4, 4))
    assert "\n" not in str(caught.value)


# --- totals ---------------------------------------------------------------------------------


def test_a_summary_survives_json_with_its_totals_and_rows():
    summary = summarize(MODELS["custom-resnet"].config)
    values = json.loads(json.dumps(summary.to_dict()))
    assert values == summary.to_dict()
    totals = ("params", "macs", "receptive_field", "chained_receptive_field")
    assert [values[key] for key in totals] == [4_058_122, summary.macs, 38, 122]
    assert values["rows"][0] == {
        "name": "stem.0",
        "kind": "Conv2d",
        "shape": [64, 32, 32],
        "params": 1792,
        "macs": 64 * 27 * 32 * 32,
        "receptive_field": 3,
        "chained_receptive_field": 3,
    }


def test_the_size_is_the_parameters_times_the_bytes_of_each_format():
    size = summarize(nn.Conv2d(1024, 1024, 1, bias=False), (1024, 2, 2)).size_mib
    assert size == {"float32": 4.0, "float16": 2.0, "int8": 1.0}
