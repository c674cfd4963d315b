from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from leanres.errors import UserError
from leanres.report.network import (
    as_trained,
    first_filters,
    images_of_step,
    load_network,
    usable,
    with_predictions,
)
from leanres.report.record import read_run
from leanres.runs.layout import PREDICTIONS
from leanres.runs.weights import WEIGHTS
from leanres.training.loop import start, steps
from leanres.training.recipe import StepCounts, from_dict
from leanres.training.setup import Setup


@pytest.mark.parametrize("step", [0, 5, 9, 11, 17])
def test_the_batch_is_what_the_network_was_given(three_runs, digits, device, step):
    record = read_run(three_runs / "a")
    recipe, train = from_dict(record.info["recipe"]), as_trained(record, digits).train
    network, given = load_network(record), []
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


def test_splits_equal_those_of_the_run(three_runs, digits):
    record, plain = read_run(three_runs / "a"), read_run(three_runs / "plain")
    assert len(as_trained(record, digits).val) == 200
    assert len(as_trained(record, digits).train) == 1237
    assert as_trained(plain, digits).val is None
    assert as_trained(plain, digits).train is digits.train


def test_other_data_is_recognised_by_its_fingerprints(three_runs, digits):
    record = read_run(three_runs / "a")
    assert usable(record, digits) is digits
    assert usable(record, None) is None
    assert usable(record, replace(digits, test=digits.test.subset(range(100)))) is None
    assert usable(record, replace(digits, test=None)) is None


def test_missing_predictions_are_computed_from_the_weights(copied, digits):
    folder = copied()
    whole = read_run(folder).predictions
    (folder / PREDICTIONS).unlink()
    record = with_predictions(read_run(folder), digits)
    assert torch.allclose(record.predictions.probs, whole.probs, atol=1e-6)
    assert torch.equal(record.predictions.labels, whole.labels)
    assert "were recomputed" in record.notes[-1]


def test_the_error_says_what_is_missing_for_predictions(copied, digits):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    with pytest.raises(UserError, match="its images were not found: give --data"):
        with_predictions(read_run(folder), None)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"and no model\.safetensors"):
        with_predictions(read_run(folder), digits)
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_network(read_run(folder))


def test_filters_are_the_weights_of_the_first_convolution(three_runs):
    network = load_network(read_run(three_runs / "a"))
    assert torch.equal(first_filters(network), network.model.stem.weight)
    network.model.stem = nn.Conv2d(1, 4, 3)
    assert first_filters(network) is None
