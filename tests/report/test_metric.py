"""A further metric is one function and one entry of METRICS: every report shows it."""

from __future__ import annotations

import json

import pytest

from leanres.metrics.calibration import brier
from leanres.metrics.classification import METRICS, Metric
from leanres.report.card import model_card
from leanres.report.page import write_report
from leanres.report.record import read_record
from leanres.report.text import text_report, text_table
from leanres.runs.predictor import load_predictor
from leanres.runs.run_json import INFO
from leanres.runs.weights import WEIGHTS


@pytest.fixture
def brier_score(monkeypatch):
    """Add the Brier score as a metric."""
    metric = Metric("Brier score", "{:.3f} of 2".format, lambda x, y: brier(x.softmax(1), y))
    monkeypatch.setitem(METRICS, "brier", metric)


@pytest.mark.usefixtures("brier_score")
def test_a_new_metric_is_in_every_report(copied, digits):
    folders, texts = [copied("a"), copied("b")], []
    for folder in folders:
        result = load_predictor(folder, "cpu", "float32").evaluate(digits.test)
        info = json.loads((folder / INFO).read_text())
        info["result"] |= result  # as the end of a training records it
        (folder / INFO).write_text(json.dumps(info))
        texts.append(f"{result['brier']:.3f} of 2")
    one, two = texts
    assert one != two
    page = write_report(folders[0], digits).read_text()
    assert f"Brier score {one}" in page
    assert f"Brier score {one}" in model_card(folders[0], folders[0] / WEIGHTS, digits, "cpu")
    assert f"Brier score {one}" in text_report(read_record(folders[0]), 5_000_000)
    heads, rows = text_table([read_record(folder) for folder in folders])
    assert [row[heads.index("Brier score")] for row in rows] == texts
    compared = write_report(folders).read_text()
    assert '<th scope="col" class="number">Brier score</th>' in compared
    assert all(f">{text}</td>" in compared for text in texts)
