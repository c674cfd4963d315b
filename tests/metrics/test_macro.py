"""Metrics of unbalanced classes equal scikit-learn's; classes with few images are named."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from leanres.metrics.classification import few_images, measure


def unbalanced(absent: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 6 classes; class 5 is absent in labels, predictions or both."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([60.0, 20, 10, 5, 5, 5]), 300, True, generator=rng)
    logits = torch.randn(300, 6, generator=rng) + torch.nn.functional.one_hot(labels, 6)
    if absent in ("labels", "both"):
        labels[labels == 5] = 0
    if absent in ("predictions", "both"):
        logits[:, 5] = -9
    return logits, labels


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("absent", ["none", "labels", "predictions", "both"])
def test_macro_metrics_equal_scikit_learns(absent):
    logits, labels = unbalanced(absent)
    found, predicted = measure(logits, labels), logits.argmax(1)
    expected = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    names = ("macro_precision", "macro_recall", "macro_f1")
    assert [found[name] for name in names] == pytest.approx(expected[:3], abs=1e-12)
    balanced = balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12)
    per_class = precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=0)
    named = ("per_class_precision", "per_class", "per_class_f1")
    for name, scores in zip(named, per_class[:3], strict=True):
        own = [0.0 if score is None else score for score in found[name]]
        assert own == pytest.approx(scores, abs=1e-12)
    assert (found["per_class_f1"][5] is None) == (absent == "both")


def test_classes_with_under_ten_images_are_named():
    assert few_images([10, 99], ["cat", "owl"], "test") == ""
    one = few_images([10, 4], ["cat", "owl"], "test")
    assert one == "class owl has 4 test images: its figures say little"
    assert "has 1 val image:" in few_images([1, 10], ["cat", "owl"], "val")
    many = few_images([3] * 7, list("abcdefg"), "test")
    assert "a 3, b 3, c 3, d 3, e 3 and 2 more: their" in many
