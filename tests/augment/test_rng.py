"""Seeded generators, and the distributions that torch does not sample with a generator."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from leanres.augment.rng import generator, permutation, rand_beta, randint_below


def test_neighbouring_counters_give_unrelated_generators():
    firsts = {
        float(torch.rand((), generator=generator(s, e, t)))
        for s in range(5)
        for e in range(5)
        for t in range(5)
    }
    assert len(firsts) == 125


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_beta_has_the_distribution_of_scipys(alpha):
    shares = rand_beta(alpha, (20_000,), generator(0)).double()
    low = shares[shares < 0.5].numpy()  # near 1, floats are too coarse for a small alpha
    assert len(low) == pytest.approx(10_000, abs=350)  # five standard deviations
    law = stats.beta(alpha, alpha)
    assert stats.kstest(low, lambda x: 2 * law.cdf(x)).pvalue > 1e-3


def test_beta_of_the_smallest_alpha_is_finite_and_reaches_0_and_1():
    shares = rand_beta(0.01, (50_000,), generator(0))
    assert shares.isfinite().all()
    assert (shares.min(), shares.max()) == (0, 1)


def test_integers_below_individual_bounds_are_uniform():
    high = torch.tensor([1, 2, 5]).repeat(5000, 1)
    drawn = randint_below(high, generator(0))
    for bound, column in zip((1, 2, 5), drawn.T, strict=True):
        counts = torch.bincount(column)
        assert len(counts) == bound
        assert counts.min() > 5000 / bound * 0.9


def test_a_permutation_holds_every_number_once():
    assert permutation(50, generator(0)).sort().values.tolist() == list(range(50))
