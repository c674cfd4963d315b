"""Metrics of logits or probabilities (N, K) against labels (N,) int64, as pure functions.

Shares are in [0, 1], the NLL is in nats. A wrong shape or dtype is a bug of the caller and raises
`ValueError`. Labels out of range and scores that are not finite come from the user's files and
raise `UserError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanres.errors import UserError
from leanres.metrics.calibration import reliability
from leanres.registry import Table


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's; of equal logits the first counts."""
    _check_scores(logits, labels)
    return float((logits.argmax(1) == labels).double().mean())


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels in nats: cross-entropy without smoothing."""
    _check_scores(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def ece(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap between top-label confidence and accuracy, a share.

    The gaps are those of `reliability` with `bins` of equal width, weighted by their images. Raises
    ValueError for logits in place of probabilities.
    """
    _check_scores(probs, labels)
    # The sum of 100 bfloat16 probabilities is off from 1 by some thousandths.
    bad = int(((probs.min(1).values < 0) | ((probs.double().sum(1) - 1).abs() > 0.02)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(probs)} rows are not probabilities: give softmax(logits)")
    return reliability(probs, labels, bins).ece


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Confusion matrix (K, K) int64 of counts: row = true class, column = predicted class."""
    _check_scores(logits, labels)
    k = logits.shape[1]
    return torch.bincount(labels * k + logits.argmax(1), minlength=k * k).reshape(k, k)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy (K,) float64 within each true class; NaN for a class without images."""
    counts = confusion(logits, labels).double()
    return counts.diagonal() / counts.sum(1)


# Every number that `measure` computes: key in the result -> function of logits and labels.
# `leanres.metrics.reported.METRICS` says how each is shown.
MEASURES: Table[Callable[[Tensor, Tensor], float]] = Table(
    "metric",
    {
        "accuracy": accuracy,
        "nll": nll,
        "ece": lambda logits, labels: ece(logits.softmax(1), labels),
    },
)


def measure(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """All of MEASURES for logits (N, K) and labels (N,), computed in float64 on the CPU. JSON-able.

    With them come `per_class`, the accuracy of each class (None without images of it),
    `confusion[true][predicted]`, counts of images, and `n`, the number of images.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    shares = per_class_accuracy(logits, labels).tolist()
    return {key: function(logits, labels) for key, function in MEASURES.items()} | {
        # None instead of NaN: NaN is not valid JSON, and makes equal records unequal.
        "per_class": [None if math.isnan(share) else share for share in shares],
        "confusion": confusion(logits, labels).tolist(),
        "n": len(labels),
    }


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval (low, high) for the true share, given `correct` of `n` images.

    Wilson's score interval without continuity correction (JASA 22:209, 1927). Unlike the normal
    approximation it stays within [0, 1] and has a width at 0 and at n correct.
    """
    from scipy.stats import binomtest  # takes most of a second to import

    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}: give a number between 0 and 1")
    low, high = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def worst_errors(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of misclassified images, most confident prediction first."""
    _check_scores(probs, labels)
    if n < 0:
        raise ValueError(f"the {n} worst errors: give 0 or more")
    confidence, predicted = probs.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:n]]


def shape_and_dtype(tensor: Tensor) -> str:
    """How error messages describe a tensor: "(8, 10) float32"."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_scores(scores: Tensor, labels: Tensor) -> None:
    """Check that shapes and dtypes match, every label has a column and every score is finite."""
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(
            f"scores {shape_and_dtype(scores)}: give floats of shape (images, classes)"
        )
    if labels.shape != scores.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels {shape_and_dtype(labels)}: give int64 of shape ({len(scores)},)")
    if not scores.numel():
        raise UserError(
            f"scores {shape_and_dtype(scores)}: nothing to measure, give at least one image"
        )
    n, k = scores.shape
    outside = labels[(labels < 0) | (labels >= k)]
    if len(outside):
        raise UserError(
            f"{len(outside)} of {n} labels are not among the network's {k} classes"
            f" (the first is {int(outside[0])}, 0 to {k - 1} fit): give data with its classes"
        )
    bad = n - int(scores.isfinite().all(1).sum())
    if bad:
        raise UserError(
            f"the scores of {bad} of {n} images contain NaN or Inf: use an earlier checkpoint or"
            " train again"
        )
