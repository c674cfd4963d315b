from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss

from leanres.metrics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    brier,
    fit_temperature,
    log_probs,
    reliability,
)
from leanres.metrics.classification import ece, nll


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (600, 5) of a network that is often right, and labels."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (600,), generator=rng)
    logits = torch.randn(600, 5, generator=rng)
    logits[torch.arange(600), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize("bins", [1, 4, 15, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ece_of_equal_bins_equals_metrics_ece(scored, bins, dtype):
    probs, labels = scored[0].to(dtype).softmax(1), scored[1]
    assert reliability(probs, labels, bins).ece == pytest.approx(
        ece(probs, labels, bins), abs=1e-12
    )


def test_ece_equals_that_of_torchmetrics(scored):
    classification = pytest.importorskip(
        "torchmetrics.functional.classification",
        reason="torchmetrics is not importable here",
        exc_type=ImportError,
    )
    probs, labels = scored[0].softmax(1), scored[1]
    theirs = classification.multiclass_calibration_error(probs, labels, 5, n_bins=15, norm="l1")
    assert reliability(probs, labels).ece == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_bins_of_equal_count_equal_a_plain_loop(scored, bins):
    probs, labels = scored[0].double().softmax(1), scored[1]
    ranked = sorted(
        (float(row.max()), bool(row.argmax() == label))
        for row, label in zip(probs, labels, strict=True)
    )
    expected = 0.0
    for number in range(bins):
        first, last = (math.ceil(len(ranked) * (number + i) / bins) for i in (0, 1))
        part = ranked[first:last]
        gap = sum(confidence for confidence, _ in part) - sum(right for _, right in part)
        expected += abs(gap) / len(ranked)
    found = reliability(probs, labels, bins, adaptive=True)
    assert found.ece == pytest.approx(expected, abs=1e-12)
    assert found.count.sum() == 600
    assert found.count.max() - found.count.min() <= 1


def test_the_order_of_equally_confident_images_does_not_matter():
    probs = torch.tensor([[0.75, 0.25]] * 40 + [[0.5, 0.5]] * 9)
    labels = torch.cat((torch.zeros(30), torch.ones(19))).long()
    order = torch.randperm(49, generator=torch.Generator().manual_seed(1))
    found = reliability(probs, labels, 5, adaptive=True)
    again = reliability(probs[order], labels[order], 5, adaptive=True)
    assert found.ece == again.ece
    assert found.count.tolist() == again.count.tolist()


def test_every_bin_holds_its_confidences(scored):
    probs, labels = scored[0].double().softmax(1), scored[1]
    for adaptive in (False, True):
        found = reliability(probs, labels, 10, adaptive)
        assert (found.low < found.confidence).all()
        assert (found.confidence <= found.high + 1e-12).all()
        assert ((found.accuracy >= 0) & (found.accuracy <= 1)).all()
    with pytest.raises(ValueError, match="0 bins"):
        reliability(probs, labels, 0)


def test_brier_equals_that_of_scikit_learn(scored):
    probs, labels = scored[0].double().softmax(1), scored[1]
    theirs = brier_score_loss(labels.numpy(), probs.numpy(), labels=np.arange(5))
    assert brier(probs, labels) == pytest.approx(theirs, abs=1e-12)


def test_the_temperature_equals_that_of_gradient_descent(scored):
    logits, labels = scored[0].double() * 4, scored[1]
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12)

    def closure():
        descent.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()
        return loss

    descent.step(closure)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(log_t.exp().item(), rel=1e-4)
    assert nll(logits / found, labels) < nll(logits, labels)


def test_logits_scaled_by_three_need_three_times_the_temperature(scored):
    logits, labels = scored
    before = logits.clone()
    assert fit_temperature(3 * logits, labels) == pytest.approx(
        3 * fit_temperature(logits, labels), rel=1e-4
    )
    assert torch.equal(logits, before)


def test_images_that_are_all_correct_or_all_wrong_get_a_temperature_within_bounds():
    scores = 3 * torch.eye(4)
    assert MIN_TEMPERATURE <= fit_temperature(scores, torch.arange(4)) < 0.1
    assert (
        0.99 * MAX_TEMPERATURE < fit_temperature(scores, torch.arange(4).flip(0)) <= MAX_TEMPERATURE
    )


def test_log_probs_serve_as_logits_and_zero_stays_finite(scored):
    logits, labels = scored
    again = log_probs(logits.softmax(1))
    assert nll(again, labels) == pytest.approx(nll(logits, labels), abs=1e-6)
    assert fit_temperature(again, labels) == pytest.approx(
        fit_temperature(logits, labels), rel=1e-4
    )
    assert log_probs(torch.tensor([[1.0, 0.0]])).isfinite().all()
