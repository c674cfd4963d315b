"""Weights as int8 would give them back; what a file may say of its network."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leanres.errors import UserError
from leanres.models.preprocess import Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_to_dict
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import KEY, _checksum, load_classifier, round_to_int8_, save_weights
from leanres.training.device import detect


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


CONFIG = ResNetConfig((4,), (1,))
PREPROCESS = Preprocess(32, (0.5,) * 3, (0.2,) * 3, tuple("abcdefghij"))


def write(path, text=None, **changes):
    """A weights file with a right sum whose metadata differ in these fields, or are `text`."""
    state = CONFIG.build().state_dict()
    model, preprocess = config_to_dict(CONFIG), asdict(PREPROCESS)
    about = {"version": "0", "model": model, "preprocess": preprocess}
    for key, value in changes.items():
        where = next((part for part in (model, preprocess) if key in part), about)
        where[key] = value
    whole = about | {"sha256": _checksum(state, about)}
    save_file(state, path, {KEY: json.dumps(whole) if text is None else text})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [2.0] * 3},
        {"mean": ["a"] * 3},
        {"mean": [0.5] * 2},
        {"std": [0.0] * 3},
        {"std": [float("nan")] * 3},
        {"size": "32"},
        {"size": 10**9},
        {"classes": ["a"] * 10},
        {"classes": ["a", "b"]},
        {"classes": ["\x1b[2J", *"bcdefghij"]},
        {"widths": [4] * 10_000, "depths": [1] * 10_000},
        {"depths": [10**6]},
        {"widths": "4"},
        {"family": "none"},
        {"precision": "float8"},
        {"precision": ["float32"]},
        {"text": '{"model":' * 100_000},
        {"text": "[]"},
    ],
    ids=str,
)
def test_a_file_that_says_what_cannot_be_is_refused(tmp_path, changes):
    with pytest.raises(UserError, match=r"w\.safetensors"):
        load_classifier(write(tmp_path / "w.safetensors", **changes))


def test_a_file_is_measured_in_the_precision_that_it_names(tmp_path):
    path = tmp_path / "w.safetensors"
    assert load_predictor(write(path), "cpu").device == detect("cpu", "float32", False)
    for precision in ("float32", "bfloat16"):
        save_weights(path, CONFIG.build(), CONFIG, PREPROCESS, precision=precision)
        assert load_predictor(path, "cpu").device.precision == precision
    assert load_predictor(path, "cpu", "float32").device.precision == "float32"
