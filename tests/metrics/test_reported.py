from __future__ import annotations

import pytest

from leanres.metrics.accuracy import MEASURES
from leanres.metrics.reported import HEADLINE, METRICS, other_metrics, percent

RESULT = {"accuracy": 0.9206, "accuracy_tta": 0.93, "nll": 0.28, "ece": 0.012, "n": 100}


def test_every_computed_metric_is_reported():
    assert set(MEASURES) <= set(METRICS)
    assert set(HEADLINE) <= set(METRICS)


def test_other_metrics_are_all_but_the_accuracy(monkeypatch):
    assert other_metrics(RESULT) == "NLL 0.2800, ECE 1.20 %"
    monkeypatch.setitem(METRICS, "brier", METRICS["nll"]._replace(label="Brier"))
    assert other_metrics(RESULT | {"brier": 0.125}) == "NLL 0.2800, ECE 1.20 %, Brier 0.1250"
    assert other_metrics(RESULT | {"nll": None}) == "ECE 1.20 %"  # nor Brier, which it lacks


@pytest.mark.parametrize(("digits", "text"), [(2, "92.06 %"), (1, "92.1 %")])
def test_shares_are_shown_in_percent(digits, text):
    assert percent(0.9206, digits) == text
