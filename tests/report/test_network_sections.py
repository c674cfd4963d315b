from __future__ import annotations

import pytest
import torch
from torch import nn

from leanres.report.network_sections import first_filters, images_of_step
from leanres.report.record import read_record
from leanres.runs.predictor import load_predictor
from leanres.training.loop import start, steps
from leanres.training.recipe import from_dict
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts


@pytest.mark.parametrize("step", [0, 5, 9, 11, 17])
def test_the_batch_is_what_the_network_was_given(three_runs, digits, device, step):
    record = read_record(three_runs / "a")
    recipe, train = from_dict(record.info["recipe"]), digits.with_val(200).train
    network, given = load_predictor(three_runs / "a", "cpu", "float32"), []
    state = start(Setup(recipe, train, network.normalize, device))
    state.step = step

    class Recorder(nn.Module):
        def forward(self, images):
            given.append(images)
            return network.normalize(images)

    fed = []
    state.model.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].detach()))
    next(steps(state, Setup(recipe, train, Recorder(), device)))
    shown = images_of_step(recipe, train, step, count=200)
    assert StepCounts(recipe, len(train)).total == 18
    assert shown.shape == fed[0].shape
    # Resizing and normalisation commute, except for the rounding to uint8.
    assert torch.allclose(network.normalize(shown), fed[0], atol=0.51 / (255 * 0.2))
    if shown.shape[-1] == 32:
        assert torch.equal(shown, given[0])


def test_filters_are_the_weights_of_the_first_convolution(three_runs):
    network = load_predictor(three_runs / "a", "cpu")
    assert torch.equal(first_filters(network), network.model.stem.weight)
    for channels in (1, 4):
        network.model.stem = nn.Conv2d(channels, 4, 3)
        assert torch.equal(first_filters(network), network.model.stem.weight)
    network.model.stem = nn.Conv2d(2, 4, 3)
    assert first_filters(network) is None
