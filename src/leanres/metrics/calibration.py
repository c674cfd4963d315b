"""Whether a network is as sure as it should be: reliability, Brier score, temperature scaling.

Functions of `probs` or `logits` (N, K) float and `labels` (N,) int64, in float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at


@dataclass(frozen=True)
class Bins:
    """Confidence of the predicted class against how often it is right, lowest bin first.

    Each field is (B,), one entry per bin that holds an image: mean confidence and accuracy are
    shares, `low` and `high` the bin's edges (low, high].
    """

    low: Tensor
    high: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap of confidence and accuracy, a share."""
        gaps = (self.confidence - self.accuracy).abs() * self.count
        return float(gaps.sum() / self.count.sum())


def reliability(probs: Tensor, labels: Tensor, bins: int = 15, adaptive: bool = False) -> Bins:
    """Sort images into `bins` by confidence; bins of equal width, or (adaptive) of equal count.

    Equal width: Guo et al. 2017, arXiv:1706.04599, sec. 2. Equal count: Nixon et al. 2019,
    arXiv:1904.01685, sec. 3; images of equal confidence share a bin, so the order of the images
    does not matter and a bin may be larger than the others. ValueError for less than one bin.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins: give 1 or more")
    confidence, predicted = probs.detach().cpu().double().max(1)
    edges = _equal_counts(confidence, bins) if adaptive else _equal_widths(probs.dtype, bins)
    place = torch.bucketize(confidence, edges[1:-1])
    hits = (predicted == labels.cpu()).double()
    count = torch.bincount(place, minlength=len(edges) - 1)
    sums = (torch.bincount(place, values, minlength=len(count)) for values in (confidence, hits))
    mean_confidence, accuracy = (total / count for total in sums)
    full = count > 0
    columns = (edges[:-1], edges[1:], mean_confidence, accuracy, count)
    return Bins(*(column[full] for column in columns))


def _equal_widths(dtype: torch.dtype, bins: int) -> Tensor:
    # edges rounded as the confidences are, so that 0.2 is 0.2 in either
    return torch.linspace(0, 1, bins + 1, dtype=dtype).double()


def _equal_counts(confidence: Tensor, bins: int) -> Tensor:
    ranked = confidence.sort().values
    last = [math.ceil(len(ranked) * i / bins) - 1 for i in range(1, bins)]
    inner = ranked[[place for place in last if place >= 0]]
    edges: Tensor = torch.unique(torch.cat((torch.zeros(1), inner, torch.ones(1))))
    return edges.double()


def brier(probs: Tensor, labels: Tensor) -> float:
    """Mean squared distance of `probs` from the label's one-hot vector, in [0, 2].

    Brier 1950, Monthly Weather Review 78:1; the sum over classes, not halved.
    """
    wanted = F.one_hot(labels.cpu(), probs.shape[1]).double()
    return float((probs.detach().cpu().double() - wanted).square().sum(1).mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 for which softmax(logits / T) has the least NLL: above 1 where it was too sure.

    Fit it on images that neither trained nor judge the network. Guo et al. 2017,
    arXiv:1706.04599, sec. 4.2. Sought between 0.05 and 20; where every image is right there is no
    best one, and a low one is given.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = logits.detach().cpu().double(), labels.detach().cpu()
    bounds = (math.log(COLDEST), math.log(HOTTEST))
    # in log T the NLL has one valley, as it is convex in 1 / T
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(scores / math.exp(log_t), truth)),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(float(found.x))


def log_probs(probs: Tensor) -> Tensor:
    """Logits (N, K) float64 that give these probabilities; one that is 0 counts as 1e-38.

    What float32 keeps of a probability ends there, and the logarithm of 0 is no number.
    """
    tiny = torch.finfo(torch.float32).tiny
    return probs.detach().cpu().double().clamp_min(tiny).log()
