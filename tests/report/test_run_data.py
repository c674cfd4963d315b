from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from leanres.errors import UserError
from leanres.report.record import read_record
from leanres.report.run_data import data_of_run, with_predictions
from leanres.runs.layout import PREDICTIONS
from leanres.runs.weights import WEIGHTS


def test_splits_equal_those_of_the_run(three_runs, digits):
    own = data_of_run(read_record(three_runs / "a"), digits)
    assert (len(own.train), len(own.val)) == (1237, 200)
    plain = data_of_run(read_record(three_runs / "plain"), digits)
    assert (plain.train, plain.val) == (digits.train, None)


def test_other_data_is_recognised_by_its_fingerprints(three_runs, digits):
    record = read_record(three_runs / "a")
    assert data_of_run(record, digits).test is digits.test
    assert data_of_run(record, None) is None
    assert data_of_run(record, replace(digits, test=digits.test.subset(range(100)))) is None
    assert data_of_run(record, replace(digits, test=None)) is None


def test_missing_predictions_are_computed_from_the_weights(copied, digits):
    folder = copied()
    whole = read_record(folder).predictions
    (folder / PREDICTIONS).unlink()
    record = with_predictions(read_record(folder), digits)
    assert torch.allclose(record.predictions.probs, whole.probs, atol=1e-6)
    assert torch.equal(record.predictions.labels, whole.labels)
    assert "were recomputed" in record.notes[-1]


def test_the_error_says_what_is_missing_for_predictions(copied, digits):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    with pytest.raises(UserError, match="its images were not found: give --data"):
        with_predictions(read_record(folder), None)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"and no model\.safetensors"):
        with_predictions(read_record(folder), digits)
