"""Weights as int8 would give them back."""

from __future__ import annotations

import torch
from torch import nn

from leanres.models.resnet import ResNetConfig
from leanres.runs.weights import round_to_int8_


def test_each_channel_is_rounded_to_255_levels_of_its_largest_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 6))
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    round_to_int8_(model)
    for was, now in zip(before, (model[0].weight, model[2].weight), strict=True):
        for channel, rounded in zip(was.flatten(1).tolist(), now.flatten(1).tolist(), strict=True):
            step = max(map(abs, channel)) / 127
            levels = torch.tensor([round(w / step) for w in channel])
            torch.testing.assert_close(torch.tensor(rounded), levels * step)
            assert levels.abs().max() == 127


def test_what_is_no_filter_is_kept_and_a_channel_of_zeros_stays_one():
    torch.manual_seed(0)
    model = ResNetConfig((4, 6), (1, 1)).build()
    nn.init.zeros_(model.stages[0][0].conv1.weight[1])
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 1}
    round_to_int8_(model)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters() if n in kept)
    assert not model.stages[0][0].conv1.weight[1].any()
    assert all(p.isfinite().all() for p in model.parameters())
