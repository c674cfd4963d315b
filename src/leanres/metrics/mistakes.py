"""Which images to look at: unsure hits, likely label errors, the classes that are confused.

Functions of `probs` (N, K) float and `labels` (N,) int64; `metrics.worst_errors` gives the
surest mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Images of class `true` that were called `predicted`, surest first. `images` is (count,)."""

    true: int
    predicted: int
    count: int
    share: float  # of the images of class `true`
    images: Tensor


def least_sure_correct(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of the correctly classified, least sure first."""
    confidence, predicted = probs.max(1)
    right = (predicted == labels).nonzero().squeeze(1)
    return right[confidence[right].argsort(stable=True)[:n]]


def label_suspects(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of images whose label is the likeliest to be wrong, worst first.

    An image is suspect where another class is predicted at least as surely as images that carry
    that class's label are on average; suspects are ranked by their loss, -log p(label). After
    confident learning (Northcutt et al. 2021, arXiv:1911.00068, sec. 3.1), without its estimate of
    how many there are. A hard image and a wrong label look alike to it: it says where to look.
    """
    confidence, predicted = probs.max(1)
    usual = _mean_self_confidence(probs, labels)
    suspect = ((predicted != labels) & (confidence >= usual[predicted])).nonzero().squeeze(1)
    given = probs[suspect, labels[suspect]]
    return suspect[given.argsort(stable=True)[:n]]


def _mean_self_confidence(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean probability (K,) of each class over the images that carry its label; 1 without any."""
    own = probs.gather(1, labels[:, None]).squeeze(1)
    totals = torch.zeros(probs.shape[1], dtype=probs.dtype).index_add_(0, labels, own)
    counts = torch.bincount(labels, minlength=probs.shape[1])
    return torch.where(counts > 0, totals / counts.clamp_min(1), torch.ones_like(totals))


def confused_pairs(probs: Tensor, labels: Tensor, n: int) -> list[Pair]:
    """The at most `n` (true, predicted) pairs of classes with the most mistakes, most first."""
    k = probs.shape[1]
    confidence, predicted = probs.max(1)
    wrong = predicted != labels
    counts = torch.bincount((labels * k + predicted)[wrong], minlength=k * k)
    totals = torch.bincount(labels, minlength=k)
    pairs = []
    for place in counts.argsort(descending=True, stable=True)[:n].tolist():
        if counts[place]:
            true, said = divmod(place, k)
            images = ((labels == true) & (predicted == said)).nonzero().squeeze(1)
            images = images[confidence[images].argsort(descending=True, stable=True)]
            share = len(images) / int(totals[true])
            pairs.append(Pair(true, said, len(images), share, images))
    return pairs
