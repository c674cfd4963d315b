"""Calibration: reliability bins, Brier score and temperature scaling.

Functions of `probs` or `logits` (N, K) float and `labels` (N,) int64, in float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # bounds of the search


@dataclass(frozen=True)
class Bins:
    """Confidence of the predicted class and accuracy per confidence bin, lowest bin first.

    Each field has shape (B,), one entry per bin that holds at least one image. Mean confidence and
    accuracy are shares; `low` and `high` are the edges of the bin (low, high].
    """

    low: Tensor
    high: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy, a share."""
        gaps = (self.confidence - self.accuracy).abs() * self.count
        return float(gaps.sum() / self.count.sum())


def reliability(probs: Tensor, labels: Tensor, bins: int = 15, adaptive: bool = False) -> Bins:
    """Sort images by confidence into `bins` of equal width, or of equal count if `adaptive`.

    Equal width: Guo et al. 2017, arXiv:1706.04599, sec. 2. Equal count: Nixon et al. 2019,
    arXiv:1904.01685, sec. 3; images of equal confidence share a bin, so the order of the images
    does not matter and a bin may be larger than the others. Raises ValueError for bins < 1.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins: give 1 or more")
    confidence, predicted = probs.detach().cpu().double().max(1)
    # Edges of equal width are rounded like the confidences, so that 0.2 is the same number in both.
    widths = torch.linspace(0, 1, bins + 1, dtype=probs.dtype).double()
    edges = _equal_counts(confidence, bins) if adaptive else widths
    bin_of = torch.bucketize(confidence, edges[1:-1])
    hits = (predicted == labels.cpu()).double()
    count = torch.bincount(bin_of, minlength=len(edges) - 1)
    sums = (torch.bincount(bin_of, values, minlength=len(count)) for values in (confidence, hits))
    mean_confidence, accuracy = (total / count for total in sums)
    filled = count > 0
    columns = (edges[:-1], edges[1:], mean_confidence, accuracy, count)
    return Bins(*(column[filled] for column in columns))


def _equal_counts(confidence: Tensor, bins: int) -> Tensor:
    ranked = confidence.sort().values
    last = [math.ceil(len(ranked) * i / bins) - 1 for i in range(1, bins)]
    inner = ranked[[index for index in last if index >= 0]]
    edges: Tensor = torch.unique(torch.cat((torch.zeros(1), inner, torch.ones(1))))
    return edges.double()


def brier(probs: Tensor, labels: Tensor) -> float:
    """Brier score: mean squared distance of `probs` from the one-hot labels, in [0, 2].

    Brier 1950, Monthly Weather Review 78:1: summed over classes, not halved.
    """
    one_hot = F.one_hot(labels.cpu(), probs.shape[1]).double()
    return float((probs.detach().cpu().double() - one_hot).square().sum(1).mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the NLL of softmax(logits / T): above 1 if overconfident.

    Guo et al. 2017, arXiv:1706.04599, sec. 4.2. Fit it on images that are used neither for training
    nor for evaluation. T is searched between 0.05 and 20. If every image is correct there is no
    optimum, and the result is close to the lower bound.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = logits.detach().cpu().double(), labels.detach().cpu()
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    # As a function of log T the NLL has a single minimum, because it is convex in 1 / T.
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(scores / math.exp(log_t), truth)),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(float(found.x))


def log_probs(probs: Tensor) -> Tensor:
    """Logits (N, K) float64 whose softmax gives these probabilities.

    A probability of 0 is replaced by 1e-38, the smallest normal float32, to avoid log(0).
    """
    tiny = torch.finfo(torch.float32).tiny
    return probs.detach().cpu().double().clamp_min(tiny).log()
