"""What logits are worth: pure functions of `logits` or `probs` (N, K) and `labels` (N,) int64.

Shares are in [0, 1], the NLL in nats. A wrong shape or dtype is a `ValueError` (our caller's
bug); a label out of range or a logit that is not finite comes from the user's files, so it is a
`UserError`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanres.errors import UserError
from leanres.metrics.calibration import reliability


@dataclass(frozen=True)
class Metrics:
    """One network over one split of `n` images; `measure(logits, labels)` makes it.

    `accuracy` and `ece` are shares, `nll` is nats an image. `per_class` holds the accuracy of each
    class, None where the split has no image of it. `confusion[true][predicted]` counts images.
    """

    accuracy: float
    nll: float
    ece: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, lists and None: what JSON gives back unchanged."""
        lists = {"per_class": list(self.per_class), "confusion": [*map(list, self.confusion)]}
        return {**asdict(self), **lists}


def measure(logits: Tensor, labels: Tensor) -> Metrics:
    """Every metric of `logits` (N, K) against `labels` (N,), in float64 on the CPU."""
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    shares = per_class_accuracy(logits, labels).tolist()
    return Metrics(
        accuracy=accuracy(logits, labels),
        nll=nll(logits, labels),
        ece=ece(logits.softmax(1), labels),
        # None, not NaN: NaN is no JSON, and it would make equal records unequal
        per_class=tuple(None if math.isnan(share) else share for share in shares),
        confusion=tuple(tuple(row) for row in confusion(logits, labels).tolist()),
        n=len(labels),
    )


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's; of equal logits the first counts."""
    _check(logits, labels)
    return float((logits.argmax(1) == labels).double().mean())


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats (cross-entropy without smoothing)."""
    _check(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def ece(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the mean gap of top-label confidence and accuracy, a share.

    `bins` of equal width (lo, hi], each weighted by its images, as `reliability` has them. Logits
    in place of probabilities are a ValueError.
    """
    _check(probs, labels)
    _check_probs(probs)
    return reliability(probs, labels, bins).ece


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts (K, K) int64: row = true class, column = predicted class."""
    _check(logits, labels)
    k = logits.shape[1]
    return torch.bincount(labels * k + logits.argmax(1), minlength=k * k).reshape(k, k)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy (K,) float64 within each true class; NaN for a class without images."""
    counts = confusion(logits, labels).double()
    return counts.diagonal() / counts.sum(1)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true share lies, given `correct` of `n`: (low, high), two-sided.

    Wilson's score interval without continuity correction (JASA 22:209, 1927): unlike the normal
    one it stays within [0, 1] and has width at 0 and at n correct.
    """
    if not (0 <= correct <= n and n > 0 and 0 < confidence < 1):
        raise ValueError(f"{correct} correct of {n} at {confidence}: give 0 <= correct <= n, n > 0")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), correct / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # at the ends the bound is exact, while the subtraction above would leave 1e-17 of rounding
    low = 0.0 if correct == 0 else (centre - reach) / scale
    high = 1.0 if correct == n else (centre + reach) / scale
    return low, high


def worst_errors(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of the misclassified, surest of its wrong class first."""
    _check(probs, labels)
    if n < 0:
        raise ValueError(f"the {n} worst errors: give 0 or more")
    confidence, predicted = probs.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:n]]


def _check(scores: Tensor, labels: Tensor) -> None:
    """Shapes and dtypes fit each other, every label has a column, every score is finite."""
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(f"scores {_form(scores)}: give floats of shape (images, classes)")
    if labels.shape != scores.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels {_form(labels)}: give int64 of shape ({len(scores)},)")
    if not scores.numel():
        raise UserError(f"scores {_form(scores)}: nothing to measure, give at least one image")
    _check_values(scores, labels)


def _check_values(scores: Tensor, labels: Tensor) -> None:
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
            f"{bad} of {n} images have scores that are not finite (NaN or infinity):"
            " the weights are spoilt, use an earlier checkpoint or train again"
        )


def _check_probs(probs: Tensor) -> None:
    # bfloat16 probabilities of 100 classes miss a sum of 1 by some thousandths
    bad = int(((probs.min(1).values < 0) | ((probs.double().sum(1) - 1).abs() > 0.02)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(probs)} rows are no probabilities: give softmax(logits)")


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
