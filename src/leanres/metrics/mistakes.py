"""Images worth looking at: confident errors, uncertain correct ones, label errors, confusions.

Functions of `probs` (N, K) float and `labels` (N,) int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class `true` that were predicted as class `predicted`."""

    true: int
    predicted: int
    count: int
    share: float  # of the images of class `true`
    images: Tensor  # (count,) int64 indices, most confident first


def worst_errors(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of misclassified images, most confident prediction first."""
    confidence, predicted = probs.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:n]]


def least_confident_correct(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of correctly classified images, least confident first."""
    confidence, predicted = probs.max(1)
    right = (predicted == labels).nonzero().squeeze(1)
    return right[confidence[right].argsort(stable=True)[:n]]


def label_suspects(probs: Tensor, labels: Tensor, n: int) -> Tensor:
    """Indices (at most n,) int64 of images whose label is likely wrong, most suspicious first.

    An image is suspicious if it is misclassified with a confidence that is at least the mean
    probability of the predicted class over the images labelled with it. Suspicious images are
    ranked by their loss, -log p(label). Based on confident learning (Northcutt et al. 2021,
    arXiv:1911.00068, sec. 3.1), without its estimate of how many labels are wrong. It cannot tell a
    hard image from a wrong label: a person has to look.
    """
    confidence, predicted = probs.max(1)
    usual = _mean_self_confidence(probs, labels)
    suspect = ((predicted != labels) & (confidence >= usual[predicted])).nonzero().squeeze(1)
    given = probs[suspect, labels[suspect]]
    return suspect[given.argsort(stable=True)[:n]]


def _mean_self_confidence(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean probability (K,) of each class over the images with its label; 1 if there are none."""
    own = probs.gather(1, labels[:, None]).squeeze(1)
    totals = torch.zeros(probs.shape[1], dtype=probs.dtype).index_add_(0, labels, own)
    counts = torch.bincount(labels, minlength=probs.shape[1])
    return torch.where(counts > 0, totals / counts.clamp_min(1), torch.ones_like(totals))


def confused_pairs(probs: Tensor, labels: Tensor, n: int) -> list[ConfusedPair]:
    """The most frequent (true, predicted) class pairs among the errors, at most `n` of them."""
    k = probs.shape[1]
    confidence, predicted = probs.max(1)
    wrong = predicted != labels
    counts = torch.bincount((labels * k + predicted)[wrong], minlength=k * k)
    totals = torch.bincount(labels, minlength=k)
    pairs = []
    for cell in counts.argsort(descending=True, stable=True)[:n].tolist():
        if counts[cell]:
            true, other = divmod(cell, k)
            images = ((labels == true) & (predicted == other)).nonzero().squeeze(1)
            images = images[confidence[images].argsort(descending=True, stable=True)]
            share = len(images) / int(totals[true])
            pairs.append(ConfusedPair(true, other, len(images), share, images))
    return pairs
