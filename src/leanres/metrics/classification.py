"""Classification metrics: functions of logits or probabilities (N, K) and labels (N,) int64.

METRICS is the table of those that are measured and reported, and how each is written. Shares are in
[0, 1], the NLL is in nats. A wrong shape or dtype is a bug of the caller and raises `ValueError`.
Labels out of range and scores that are not finite come from the user's files and raise `UserError`.

Importing this file does not import torch: `leanres runs` lists runs without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from leanres.errors import UserError
from leanres.registry import Table

if TYPE_CHECKING:
    from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's; of equal logits the first counts."""
    _check_scores(logits, labels)
    return float((logits.argmax(1) == labels).cpu().double().mean())  # no float64 on Apple GPUs


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels in nats: cross-entropy without smoothing."""
    from torch.nn.functional import cross_entropy

    _check_scores(logits, labels)
    return float(cross_entropy(logits.double(), labels))


def ece(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap between top-label confidence and accuracy, a share.

    The gaps are those of `reliability` with `bins` of equal width, weighted by their images. Raises
    ValueError for logits in place of probabilities.
    """
    from leanres.metrics.calibration import reliability

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
    return (labels * k + logits.argmax(1)).bincount(minlength=k * k).reshape(k, k)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy (K,) float64 within each true class; NaN for a class without images."""
    counts = confusion(logits, labels).double()
    return counts.diagonal() / counts.sum(1)


class ClassScores(NamedTuple):
    """Precision, recall and F1 of each class, (K,) float64; NaN where nothing can be divided by.

    Recall is NaN without images of a class, precision and F1 where it is neither true nor predicted
    (precision also without predictions: scikit-learn's zero_division counts it as 0).
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


def class_scores(counts: Tensor) -> ClassScores:
    """The scores of each class from a confusion matrix (K, K), as `confusion` gives it."""
    counts = counts.double()
    correct, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return ClassScores(correct / predicted, correct / true, 2 * correct / (true + predicted))


def macro(name: str, logits: Tensor, labels: Tensor) -> float:
    """Mean of a field of ClassScores over the classes that occur, in labels or in predictions.

    As scikit-learn's precision_recall_fscore_support(average="macro", zero_division=0).
    """
    scores = class_scores(confusion(logits, labels))
    occurs = ~scores.f1.isnan()
    score: Tensor = getattr(scores, name)
    return float(score[occurs].nan_to_num(0.0).mean())


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean accuracy of the classes that have images, as scikit-learn's balanced_accuracy_score."""
    return float(per_class_accuracy(logits, labels).nanmean())


FEW = 10  # images of a class, below which its own figures say little


def few_images(counts: Sequence[int], classes: Sequence[str], split: str) -> str:
    """One line on the classes with fewer than FEW images; "" where there is none."""
    few = [(name, n) for name, n in zip(classes, counts, strict=True) if n < FEW]
    if not few:
        return ""
    shown = ", ".join(f"{name} {n}" for name, n in few[:5])
    if len(few) == 1:
        (name, n), images = few[0], "image" if few[0][1] == 1 else "images"
        return f"class {name} has {n} {split} {images}: its figures say little"
    more = f" and {len(few) - 5} more" if len(few) > 5 else ""
    return f"classes with under {FEW} {split} images: {shown}{more}: their figures say little"


def percent(share: float, digits: int = 2) -> str:
    """A share as text: 0.9206 -> "92.06 %"."""
    return f"{100 * share:.{digits}f} %"


class Metric(NamedTuple):
    """A number of a result: its label, its value as text, and the function that computes it."""

    label: str
    text: Callable[[float], str]
    # Of logits and labels, both on the CPU, logits as float64. None: `measure` leaves it out.
    function: Callable[[Tensor, Tensor], float] | None = None


# Key in a result (run.json, `leanres evaluate --json`) -> metric.
METRICS: Table[Metric] = Table(
    "metric",
    {
        "accuracy": Metric("accuracy", percent, accuracy),
        "accuracy_tta": Metric("with TTA", percent),
        "nll": Metric("NLL", "{:.4f}".format, nll),
        "ece": Metric("ECE", percent, lambda logits, labels: ece(logits.softmax(1), labels)),
        "balanced_accuracy": Metric("balanced accuracy", percent, balanced_accuracy),
        "macro_precision": Metric("macro precision", percent, partial(macro, "precision")),
        "macro_recall": Metric("macro recall", percent, partial(macro, "recall")),
        "macro_f1": Metric("macro F1", percent, partial(macro, "f1")),
    },
)
# Left out of lines and tables of the terminal: near the accuracy where classes are balanced.
SAME_IF_BALANCED = ("balanced_accuracy", "macro_precision", "macro_recall")
HEADLINE = ("accuracy", "accuracy_tta")  # shown by `accuracy_text`, with n and an interval


def measure(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """All of METRICS for logits (N, K) and labels (N,), computed in float64 on the CPU. JSON-able.

    With them come `per_class`, the accuracy of each class (None without images of it), which is its
    recall, `per_class_precision` and `per_class_f1` (None where they are not defined),
    `confusion[true][predicted]`, counts of images, and `n`, the number of images.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    counts = confusion(logits, labels)
    scores = class_scores(counts)
    measured = {key: m.function(logits, labels) for key, m in METRICS.items() if m.function}
    return measured | {
        # None instead of NaN: NaN is not valid JSON, and makes equal records unequal.
        "per_class": _without_nan(scores.recall),
        "per_class_precision": _without_nan(scores.precision),
        "per_class_f1": _without_nan(scores.f1),
        "confusion": counts.tolist(),
        "n": len(labels),
    }


def _without_nan(scores: Tensor) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores.tolist()]


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


def accuracy_interval(result: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % Wilson interval of a result's accuracy, from its `accuracy` and `n`."""
    return wilson_interval(round(result["accuracy"] * result["n"]), result["n"])


CHOICE = ("epoch", "last_epoch", "chosen_by")  # keys of a result whose weights val chose


def choice_text(result: Mapping[str, Any]) -> str:
    """Which epoch a result is of, if val chose it: "epoch 7 of 9, chosen on val"; else "".

    A figure on the val images that chose the epoch is marked: it is higher than on others.
    """
    if result.get("chosen_by") is None:
        return ""
    on = "these same images (optimistic)" if result["split"] == "val" else "val"
    return f"epoch {result['epoch']} of {result['last_epoch']}, chosen on {on}"


def accuracy_text(result: Mapping[str, Any]) -> str:
    """The accuracy of a result with n, its interval and, if any, that with augmentation.

    "93.20 % of 10,000 images (95 % interval 92.69 to 93.68 %), 93.90 % with flip augmentation"; and
    the epoch, as `choice_text` says.
    """
    low, high = accuracy_interval(result)
    interval = f"95 % interval {100 * low:.2f} to {percent(high)}"
    plain = f"{percent(result['accuracy'])} of {result['n']:,} images ({interval})"
    if result["tta"] != "none":
        plain += f", {percent(result['accuracy_tta'])} with {result['tta']} augmentation"
    chosen = choice_text(result)
    return f"{plain}; {chosen}" if chosen else plain


def other_metrics(result: Mapping[str, Any], short: bool = False) -> str:
    """All metrics of a result except its accuracy: "NLL 0.2800, ECE 1.20 %, ...".

    `short` leaves out those that say nearly the same where classes are equally frequent.
    """
    left_out = (*HEADLINE, *(SAME_IF_BALANCED if short else ()))
    shown = [
        f"{metric.label} {metric.text(result[key])}"
        for key, metric in METRICS.items()
        if key not in left_out and result.get(key) is not None
    ]
    return ", ".join(shown)


def shape_and_dtype(tensor: Tensor) -> str:
    """How error messages describe a tensor: "(8, 10) float32"."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_scores(scores: Tensor, labels: Tensor) -> None:
    """Check that shapes and dtypes match, every label has a column and every score is finite."""
    import torch

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
            f" (the first is {int(outside[0])}, valid are 0 to {k - 1}): give data with its classes"
        )
    bad = n - int(scores.isfinite().all(1).sum())
    if bad:
        raise UserError(
            f"the scores of {bad} of {n} images contain NaN or Inf: use an earlier checkpoint or"
            " train again"
        )
