"""Metrics against scikit-learn and plain loops."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from leanres.errors import UserError
from leanres.metrics.classification import (
    HEADLINE,
    METRICS,
    Metric,
    accuracy,
    accuracy_interval,
    accuracy_text,
    confusion,
    ece,
    measure,
    nll,
    other_metrics,
    per_class_accuracy,
    percent,
    wilson_interval,
)

N, K = 400, 7


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right about half of the time, and labels that miss class 6."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(0, K - 1, (N,), generator=rng)
    noise = torch.randn(N, K, generator=rng)
    return noise + 1.5 * torch.nn.functional.one_hot(labels, K), labels


def test_accuracy_equals_that_of_scikit_learn(scored):
    logits, labels = scored
    expected = accuracy_score(labels.numpy(), logits.argmax(1).numpy())
    assert 0.3 < expected < 0.8
    assert accuracy(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_nll_equals_the_log_loss_of_scikit_learn(scored):
    logits, labels = scored
    probs = logits.double().softmax(1).numpy()
    expected = log_loss(labels.numpy(), probs, labels=range(K))
    assert nll(logits, labels) == pytest.approx(expected, abs=1e-9)


def test_confusion_equals_that_of_scikit_learn_with_true_classes_in_rows(scored):
    logits, labels = scored
    expected = confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), labels=range(K))
    assert (expected != expected.T).any()
    np.testing.assert_array_equal(confusion(logits, labels).numpy(), expected)


def test_per_class_accuracy_is_within_the_true_class_and_nan_without_images(scored):
    logits, labels = scored
    shares = per_class_accuracy(logits, labels)
    for k in range(K - 1):
        chosen = labels == k
        assert shares[k].item() == pytest.approx(accuracy(logits[chosen], labels[chosen]))
    assert shares[K - 1].isnan()


def loop_ece(probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, one bin and one image at a time."""
    total = 0.0
    for index in range(bins):
        low, high = np.float64(index) / bins, np.float64(index + 1) / bins
        inside = [i for i, row in enumerate(probs) if low < row.max() <= high]
        if inside:
            hit = np.mean([probs[i].argmax() == labels[i] for i in inside])
            sure = np.mean([probs[i].max() for i in inside])
            total += len(inside) / len(probs) * abs(hit - sure)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_a_plain_loop(scored, bins):
    logits, labels = scored
    probs = logits.double().softmax(1)
    expected = loop_ece(probs.numpy(), labels.numpy(), bins)
    assert expected > 0.005
    assert ece(probs, labels, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it(dtype):
    # 0.6 lies on the edge of (0.4, 0.6] and (0.6, 0.8] and is wrong, 0.7 is right. In separate bins
    # the gaps 0.6 and -0.3 add up; in one bin they would cancel to 0.3 over two images.
    probs = torch.tensor([[0.6, 0.4], [0.7, 0.3]], dtype=dtype)
    assert ece(probs, torch.tensor([1, 0]), bins=5) == pytest.approx((0.6 + 0.3) / 2, abs=1e-6)


def test_confident_and_right_is_calibrated_and_confident_and_wrong_is_not():
    probs = torch.eye(3)
    assert ece(probs, torch.tensor([0, 1, 2])) == 0.0
    assert ece(probs, torch.tensor([1, 2, 0])) == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 7), (7, 7), (1, 2), (9_412, 10_000), (3, 50)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_a_share_at_either_wilson_bound_would_just_be_rejected_by_the_score_test(
    correct, n, confidence
):
    low, high = wilson_interval(correct, n, confidence)
    assert 0 <= low <= correct / n <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            z = abs(correct / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert z == pytest.approx(norm.ppf((1 + confidence) / 2), rel=1e-9)
    assert (low == 0, high == 1) == (correct == 0, correct == n)


@pytest.mark.parametrize("asked", [(-1, 5), (6, 5), (0, 0), (1, 2, 1.0), (1, 2, 0.0)])
def test_an_interval_of_impossible_counts_is_refused(asked):
    with pytest.raises(ValueError, match=r"^(k|n) |confidence of"):
        wilson_interval(*asked)


RESULT = {"accuracy": 0.9206, "accuracy_tta": 0.93, "tta": "flip", "nll": 0.28, "ece": 0.012}
RESULT["n"] = 10_000


def test_the_accuracy_is_shown_with_n_its_interval_and_that_with_augmentation():
    low, high = accuracy_interval(RESULT)
    assert (low, high) == wilson_interval(9206, 10_000)
    plain = f"92.06 % of 10,000 images (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
    assert accuracy_text(RESULT) == f"{plain}, 93.00 % with flip augmentation"
    assert accuracy_text(RESULT | {"tta": "none"}) == plain


def test_other_metrics_are_all_but_the_accuracy(monkeypatch):
    assert set(HEADLINE) <= set(METRICS)
    assert other_metrics(RESULT) == "NLL 0.2800, ECE 1.20 %"
    monkeypatch.setitem(METRICS, "brier", METRICS["nll"]._replace(label="Brier"))
    assert other_metrics(RESULT | {"brier": 0.125}) == "NLL 0.2800, ECE 1.20 %, Brier 0.1250"
    assert other_metrics(RESULT | {"nll": None}) == "ECE 1.20 %"  # nor Brier, which it lacks


@pytest.mark.parametrize(("digits", "text"), [(2, "92.06 %"), (1, "92.1 %")])
def test_shares_are_shown_in_percent(digits, text):
    assert percent(0.9206, digits) == text


def test_measure_returns_what_the_single_functions_return(scored):
    logits, labels = scored
    found = measure(logits, labels)
    assert found["n"] == N
    assert found["accuracy"] == accuracy(logits, labels)
    assert found["nll"] == pytest.approx(nll(logits, labels))
    assert found["ece"] == pytest.approx(ece(logits.softmax(1), labels), abs=1e-6)
    assert found["confusion"] == confusion(logits, labels).tolist()
    assert found["per_class"][: K - 1] == per_class_accuracy(logits, labels)[: K - 1].tolist()
    assert found["per_class"][K - 1] is None


def test_a_metric_added_to_the_table_is_measured(scored, monkeypatch):
    error = Metric("error", percent, lambda logits, labels: 1 - accuracy(logits, labels))
    monkeypatch.setitem(METRICS, "error", error)
    found = measure(*scored)
    assert found["error"] == 1 - found["accuracy"]


def test_metrics_survive_json_unchanged(scored):
    record = measure(*scored)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    macro = ["balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"]
    per_class = ["per_class", "per_class_precision", "per_class_f1"]
    assert list(record) == ["accuracy", "nll", "ece", *macro, *per_class, "confusion", "n"]


def test_measuring_leaves_logits_and_labels_unchanged(scored):
    logits, labels = scored
    before = logits.clone(), labels.clone()
    measure(logits, labels)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_logits_of_a_network_in_half_precision_and_with_gradients_are_measured(scored):
    logits, labels = scored
    half = logits.bfloat16().requires_grad_()
    assert measure(half, labels) == measure(half.detach().float(), labels)


def test_logits_that_are_not_finite_are_counted_by_image(scored):
    logits, labels = scored
    logits[3, 0], logits[3, 1], logits[7, 2] = torch.nan, torch.nan, torch.inf
    with pytest.raises(
        UserError, match=r"^the scores of 2 of 400 images contain NaN or Inf"
    ) as bad:
        measure(logits, labels)
    assert "\n" not in str(bad.value)


@pytest.mark.parametrize("label", [-1, K, 99])
def test_labels_outside_the_classes_are_counted_and_the_first_is_named(scored, label):
    logits, labels = scored
    labels[5] = labels[9] = label
    with pytest.raises(
        UserError, match=rf"^2 of 400 labels .*7 classes .*first is {label}, valid are 0 to 6"
    ):
        measure(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), r"scores \(4,\) float32"),
        (torch.zeros(4, 2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64), "int32"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), r"labels \(3,\).*\(4,\)"),
        (torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int64), r"labels \(4, 2\)"),
        (torch.zeros(4, 2), torch.zeros(4), "labels .*float32"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "nothing to measure"),
    ],
)
def test_tensors_that_do_not_fit_are_described(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(logits, labels)


def test_ece_refuses_logits_in_place_of_probabilities(scored):
    with pytest.raises(ValueError, match="give softmax"):
        ece(*scored)


def test_ece_accepts_the_rounding_of_half_precision_probabilities(scored):
    logits, labels = scored
    whole = ece(logits.softmax(1), labels)
    assert ece(logits.softmax(1).bfloat16(), labels) == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("classification", ["torch", "scipy"]), ("statistics", ["scipy"])],
)
def test_importing_a_module_does_not_import_slow_ones(module, unwanted):
    code = f"import sys, leanres.metrics.{module}; print(*(m in sys.modules for m in {unwanted}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"False"}
