from __future__ import annotations

import math
import statistics

import pytest
import torch
from scipy.stats import t, ttest_rel

from leanres.metrics.statistics import (
    format_p,
    gain_over_mean,
    holm,
    mcnemar,
    mean_sd,
    paired_seeds,
)


def answers(both: int, first: int, second: int, none: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images each network classifies correctly, given the number for each combination."""
    counts = torch.tensor([both, first, second, none])
    a = torch.tensor([True, True, False, False]).repeat_interleave(counts)
    b = torch.tensor([True, False, True, False]).repeat_interleave(counts)
    return a, b


def exact_p(gained: int, lost: int) -> float:
    """Two-sided: twice the smaller tail of fair coins, at most 1."""
    n, few = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)


COUNTS = [(0, 1), (3, 9), (40, 20), (7, 7), (0, 12), (201, 150)]


@pytest.mark.parametrize(("gained", "lost"), COUNTS)
def test_mcnemars_p_is_that_of_a_binomial_test(gained, lost):
    found = mcnemar(*answers(500, lost, gained, 20))
    assert found.p == pytest.approx(exact_p(gained, lost), rel=1e-9)
    assert found.difference == pytest.approx((gained - lost) / found.n)
    assert found.low <= found.difference <= found.high


@pytest.mark.parametrize("lost", [0, 3, 10, 30])
def test_the_interval_excludes_zero_exactly_where_mcnemars_test_is_significant(lost):
    for gained in range(60):
        if gained + lost:
            found = mcnemar(*answers(100, lost, gained, 5))
            significant = found.p < 0.05
            assert significant == (not found.low <= 0 <= found.high) == found.distinguishable


def test_swapping_the_networks_reverses_the_difference():
    a, b = answers(80, 3, 11, 6)
    there, back = mcnemar(a, b), mcnemar(b, a)
    assert (there.difference, there.low) == pytest.approx((-back.difference, -back.high))
    assert there.p == back.p


def test_equal_answers_are_no_difference_and_other_images_are_refused():
    a, _ = answers(10, 5, 0, 0)
    same = mcnemar(a, a.clone())
    assert (same.difference, same.p, same.distinguishable) == (0.0, 1.0, False)
    assert same.verdict == "not distinguishable at n = 15 images"
    with pytest.raises(ValueError, match="15 and 14 images"):
        mcnemar(a, a[1:])


def test_the_sentence_says_which_network_is_better():
    better = mcnemar(*answers(900, 10, 60, 30)).sentence("old", "new")
    assert better.startswith("new is better than old at n = 1,000 images. new minus old is +5.00")
    assert "another seed gives another network" in better
    worse = mcnemar(*answers(900, 60, 10, 30)).sentence("old", "new")
    assert worse.startswith("new is worse than old at n = 1,000 images. new minus old is -5.00")


SEEDS = [
    ([0.930, 0.934, 0.928, 0.931], [0.936, 0.939, 0.935, 0.935], "better"),
    ([0.940, 0.943, 0.941], [0.900, 0.902, 0.901], "worse"),
    ([0.93, 0.93, 0.93], [0.931, 0.936, 0.930 + 1e-4], "not distinguishable at n = 3"),
    ([0.91, 0.92], [0.92, 0.94], "not distinguishable at n = 2"),
]


@pytest.mark.parametrize(("first", "second", "verdict"), SEEDS)
def test_seeds_are_compared_by_students_paired_t_test(first, second, verdict):
    found = paired_seeds(first, second)
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    n = len(gaps)
    half_width = t.ppf(0.975, n - 1) * statistics.stdev(gaps) / math.sqrt(n)
    assert found.difference == pytest.approx(statistics.mean(gaps))
    assert found.half_width == pytest.approx(half_width)
    assert found.low == pytest.approx(found.difference - half_width)
    assert found.high == pytest.approx(found.difference + half_width)
    assert found.p == pytest.approx(ttest_rel(second, first).pvalue)
    assert (found.n, found.verdict) == (n, verdict)
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high) == found.distinguishable


def test_three_seeds_of_the_design_are_not_distinguishable():
    found = paired_seeds([0.930, 0.932, 0.931], [0.936, 0.935, 0.939])
    assert 100 * found.difference == pytest.approx(0.5667, abs=1e-4)
    assert 100 * found.half_width == pytest.approx(0.6252, abs=1e-4)
    assert found.verdict == "not distinguishable at n = 3"
    assert found.sentence("a", "b").startswith(
        "b and a are not distinguishable at n = 3."
        " b minus a is +0.57 points (95 % interval -0.06 to +1.19), p = 0.06."
    )


def test_one_pair_of_seeds_has_a_difference_and_no_interval():
    found = paired_seeds([0.9], [0.8])
    assert found.difference == pytest.approx(-0.1)
    assert (found.low, found.high, found.p, found.half_width) == (None, None, None, None)
    assert (found.n, found.distinguishable) == (1, False)
    assert found.sentence("a", "b").startswith("one seed: untested. b minus a is -10.00 points")


def test_seeds_without_a_spread_give_no_warning():
    same = paired_seeds([0.9, 0.8], [0.9, 0.8])
    assert (same.difference, same.half_width, same.p) == (0, 0, 1)
    assert same.verdict == "not distinguishable at n = 2"
    shifted = paired_seeds([0.5, 0.6, 0.7], [0.75, 0.85, 0.95])  # equal but for rounding
    assert (shifted.p, shifted.verdict) == (0, "better")
    assert shifted.low == shifted.high == shifted.difference == pytest.approx(0.25)


@pytest.mark.parametrize(("first", "second"), [([], []), ([0.9], [0.9, 0.8])])
def test_runs_that_are_no_pairs_are_refused(first, second):
    with pytest.raises(ValueError, match="give pairs of runs"):
        paired_seeds(first, second)


def test_the_standard_deviation_is_that_of_the_sample():
    assert mean_sd([1.0, 2.0, 4.0]) == pytest.approx({"mean": 7 / 3, "sd": math.sqrt(7 / 3)})
    assert mean_sd([0.5]) == {"mean": 0.5, "sd": None}


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_have_two_digits():
    assert format_p(0.03456) == "p = 0.035"
    assert format_p(3e-9) == "p < 0.0001"


def test_the_gain_over_the_mean_is_the_paired_t_test_over_images():
    rng = torch.Generator().manual_seed(3)
    members = torch.rand(4, 500, generator=rng) < 0.8
    ensemble = members.double().mean(0) + 0.1 * torch.rand(500, generator=rng) > 0.5
    found = gain_over_mean(members, ensemble)
    test = ttest_rel(ensemble.double(), members.double().mean(0))
    assert found.difference == pytest.approx(
        float(ensemble.double().mean() - members.double().mean())
    )
    assert found.p == pytest.approx(float(test.pvalue))
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(float(low)), pytest.approx(float(high)))
    assert found.verdict == "better"
    assert (found.n, found.unit) == (500, "images")


def test_one_image_tells_no_gain_and_unequal_ones_are_a_mistake():
    one = gain_over_mean(torch.tensor([[True], [False]]), torch.tensor([True]))
    assert (one.difference, one.low, one.verdict) == (0.5, None, "one image: untested")
    same = gain_over_mean(torch.ones(2, 9, dtype=torch.bool), torch.ones(9, dtype=torch.bool))
    assert (same.difference, same.p) == (0.0, 1.0)
    with pytest.raises(ValueError, match="give"):
        gain_over_mean(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
