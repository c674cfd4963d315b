from __future__ import annotations

import math

import pytest
import torch

from leanres.metrics.mistakes import (
    confused_pairs,
    label_suspects,
    least_confident_correct,
    worst_errors,
)


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    probs = (2 * torch.randn(300, 4, generator=rng)).softmax(1)
    labels = torch.where(
        torch.rand(300, generator=rng) < 0.7,
        probs.argmax(1),
        torch.randint(4, (300,), generator=rng),
    )
    return probs, labels


def test_the_worst_errors_are_the_most_confident_ones(scored):
    probs, labels = scored
    rows = zip(range(300), probs.tolist(), labels.tolist(), strict=True)
    wrong = [(max(row), i) for i, row, label in rows if row.index(max(row)) != label]
    expected = [i for _, i in sorted(wrong, reverse=True)]
    assert worst_errors(probs, labels, 5).tolist() == expected[:5]
    assert worst_errors(probs, labels, 300).tolist() == expected


def test_a_network_without_errors_has_no_worst_ones():
    assert worst_errors(torch.eye(3), torch.arange(3), 9).shape == (0,)


def test_the_least_confident_correct_images_equal_a_plain_loop(scored):
    probs, labels = scored
    hits = [i for i in range(300) if probs[i].argmax() == labels[i]]
    expected = sorted(hits, key=lambda i: float(probs[i].max()))[:10]
    assert least_confident_correct(probs, labels, 10).tolist() == expected
    assert len(least_confident_correct(probs, labels, 1000)) == len(hits)


def test_label_suspects_equal_a_plain_loop(scored):
    probs, labels = scored
    usual = [
        sum(float(probs[i, k]) for i in range(300) if labels[i] == k)
        / sum(1 for i in range(300) if labels[i] == k)
        for k in range(4)
    ]
    suspects = []
    for i in range(300):
        said = int(probs[i].argmax())
        if said != labels[i] and float(probs[i, said]) >= usual[said]:
            suspects.append((-math.log(float(probs[i, labels[i]])), i))
    expected = [i for _, i in sorted(suspects, key=lambda pair: -pair[0])]
    assert 5 < len(expected) < 150
    assert label_suspects(probs, labels, 1000).tolist() == expected


def test_a_planted_label_error_is_the_first_suspect():
    probs = torch.full((50, 2), 0.1)
    probs[:, 0] = 0.9
    labels = torch.zeros(50, dtype=torch.int64)
    probs[17], labels[17] = torch.tensor([0.999, 0.001]), 1
    assert label_suspects(probs, labels, 3).tolist() == [17]


def test_confused_pairs_are_counted_and_sorted(scored):
    probs, labels = scored
    counts = {}
    for row, label in zip(probs, labels.tolist(), strict=True):
        said = int(row.argmax())
        if said != label:
            counts[label, said] = counts.get((label, said), 0) + 1
    pairs = confused_pairs(probs, labels, 100)
    assert {(p.true, p.predicted): p.count for p in pairs} == counts
    assert [p.count for p in pairs] == sorted(counts.values(), reverse=True)
    first = pairs[0]
    assert first.share == first.count / int((labels == first.true).sum())
    sure = probs[first.images].max(1).values
    assert (sure[:-1] >= sure[1:]).all()


def test_a_network_without_errors_has_none():
    probs, labels = torch.eye(3), torch.arange(3)
    assert confused_pairs(probs, labels, 5) == []
    assert len(label_suspects(probs, labels, 5)) == 0
    assert len(least_confident_correct(probs, labels, 5)) == 3
