from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from leanres.metrics.statistics import holm, mcnemar, p_value, paired_seeds


def answers(both: int, first: int, second: int, none: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Who is right on so many images: both, only the first, only the second, neither."""
    counts = torch.tensor([both, first, second, none])
    a = torch.tensor([True, True, False, False]).repeat_interleave(counts)
    b = torch.tensor([True, False, True, False]).repeat_interleave(counts)
    return a, b


def exact_p(ups: int, downs: int) -> float:
    """Two-sided: twice the smaller tail of fair coins, at most 1."""
    n, few = ups + downs, min(ups, downs)
    tail = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("ups", "downs"), [(0, 1), (3, 9), (40, 20), (7, 7), (0, 12), (201, 150)])
def test_mcnemars_p_is_that_of_the_coins(ups, downs):
    found = mcnemar(*answers(500, downs, ups, 20))
    assert found.p == pytest.approx(exact_p(ups, downs), rel=1e-9)
    assert found.difference == pytest.approx((ups - downs) / found.n)
    assert found.low <= found.difference <= found.high


@pytest.mark.parametrize("downs", [0, 3, 10, 30])
def test_the_interval_leaves_zero_out_exactly_where_the_test_is_sure(downs):
    for ups in range(60):
        if ups + downs:
            found = mcnemar(*answers(100, downs, ups, 5))
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high) == found.real


def test_the_other_way_round_is_the_opposite():
    a, b = answers(80, 3, 11, 6)
    there, back = mcnemar(a, b), mcnemar(b, a)
    assert (there.difference, there.low) == pytest.approx((-back.difference, -back.high))
    assert there.p == back.p


def test_equal_answers_are_no_difference_and_other_images_are_refused():
    a, _ = answers(10, 5, 0, 0)
    same = mcnemar(a, a.clone())
    assert (same.difference, same.p, same.real) == (0.0, 1.0, False)
    assert "not distinguishable at n = 15 images" in same.words("a", "b")
    with pytest.raises(ValueError, match="15 and 14 images"):
        mcnemar(a, a[1:])


def test_words_name_the_better_one():
    found = mcnemar(*answers(900, 10, 60, 30))
    assert found.words("old", "new").startswith("new is better than old: new minus old is +5.00")
    assert "another seed is another network" in found.words("old", "new")
    back = mcnemar(*answers(900, 60, 10, 30))
    assert back.words("old", "new").startswith("old is better than new")


def test_seeds_are_paired_and_p_is_that_of_scipy():
    first, second = [0.930, 0.934, 0.928, 0.931], [0.936, 0.939, 0.935, 0.935]
    found = paired_seeds(first, second)
    assert found.p == pytest.approx(ttest_rel(second, first).pvalue)
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert found.real
    # a plain bootstrap: every way to draw 4 of the 4 differences
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    means = sorted(sum(gaps[i] for i in draw) / 4 for draw in np.ndindex(4, 4, 4, 4))
    assert found.low == pytest.approx(means[6], abs=4e-4)
    assert found.high == pytest.approx(means[-7], abs=4e-4)


def test_three_differences_of_one_sign_are_not_enough_by_themselves():
    found = paired_seeds([0.93, 0.93, 0.93], [0.931, 0.936, 0.930 + 1e-4])
    assert found.low > 0  # what a bootstrap of three would call sure
    assert not found.real
    assert "a and b are not distinguishable at n = 3:" in found.words("a", "b")


def test_a_clear_difference_of_three_seeds_is_found():
    found = paired_seeds([0.900, 0.902, 0.901], [0.940, 0.943, 0.941])
    assert found.words("a", "b").startswith("b is better than a: b minus a is +4.03 points")


def test_seeds_that_all_differ_by_nothing_and_by_the_same_are_no_warning():
    assert paired_seeds([0.9, 0.8], [0.9, 0.8]).p == 1.0
    assert paired_seeds([0.5, 0.5], [0.75, 0.75]).p < 1e-9
    with pytest.raises(ValueError, match="2 or more pairs"):
        paired_seeds([0.9], [0.8])


def test_a_bootstrap_is_the_same_each_time():
    pairs = ([0.1, 0.2, 0.3], [0.2, 0.25, 0.5])
    assert paired_seeds(*pairs) == paired_seeds(*pairs)


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_have_two_digits():
    assert p_value(0.03456) == "p = 0.035"
    assert p_value(3e-9) == "p < 0.0001"
