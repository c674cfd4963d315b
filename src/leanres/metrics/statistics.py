"""Whether a difference is real: McNemar's test on images, paired bootstrap on seeds, in words."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LEVEL = 0.05  # a difference counts as real where chance gives it less often than this


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a second network (or group) minus that of a first one, as shares.

    `low` and `high` bound the difference with 95 % confidence; `p` is how often chance alone gives
    one at least as large; `n` counts the images or the pairs of seeds behind it.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    detail: str
    kind: str  # "images" or "seeds"

    @property
    def real(self) -> bool:
        """Whether the two can be told apart: p below 0.05 and an interval without 0."""
        return self.p < LEVEL and not self.low <= 0 <= self.high

    def words(self, first: str, second: str) -> str:
        """The finding as sentences for people."""
        better, worse = (second, first) if self.difference > 0 else (first, second)
        of = f"n = {self.n:,}" + (" images" if self.kind == "images" else "")
        verdict = (
            f"{better} is better than {worse}"
            if self.real
            else f"{first} and {second} are not distinguishable at {of}"
        )
        d, low, high = (100 * value for value in (self.difference, self.low, self.high))
        return (
            f"{verdict}: {second} minus {first} is {d:+.2f} points (95 % interval {low:+.2f} to"
            f" {high:+.2f}), {p_value(self.p)}. {self.detail}"
        )


def p_value(p: float) -> str:
    """A p-value with two digits: "p = 0.035", and "p < 0.0001" below that."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def mean_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which is None for one value alone."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd}


def mcnemar(first: Tensor, second: Tensor) -> Comparison:
    """Compare two networks on the same images: (N,) bool each, True where it was right.

    The images on which exactly one is right are coin throws if both are equally good: an exact,
    two-sided binomial test (McNemar, Psychometrika 12:153, 1947). The interval is Clopper and
    Pearson's for those images, so it agrees with the test. ValueError for unequal lengths.
    """
    from scipy.stats import binomtest

    if first.shape != second.shape or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} images: give the same ones, 1 or more")
    n = len(first)
    ups, downs = int((second & ~first).sum()), int((first & ~second).sum())
    split = ups + downs
    detail = (
        f"They disagree on {split:,} of {n:,} images; the second is right on {ups:,} of these, the"
        f" first on {downs:,} (exact McNemar test). This compares two trained networks, not two"
        " recipes: another seed is another network."
    )
    if not split:
        return Comparison(0.0, 0.0, 0.0, 1.0, n, detail, "images")
    test = binomtest(ups, split)
    bounds = test.proportion_ci(0.95, "exact")
    low, high = ((2 * share - 1) * split / n for share in (bounds.low, bounds.high))
    return Comparison((ups - downs) / n, low, high, float(test.pvalue), n, detail, "images")


def paired_seeds(
    first: Sequence[float], second: Sequence[float], draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two recipes by the accuracies of their runs, paired by seed: n shares each, n >= 2.

    The interval is the paired percentile bootstrap (Efron 1979): seeds drawn with replacement.
    With few seeds it is too narrow (three differences of one sign never give one with 0 in it), so
    the p-value is that of Student's paired t-test, and both have to agree.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    n = len(differences)
    if n < 2 or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} runs: give 2 or more pairs of one seed")
    means = np.random.default_rng(seed).choice(differences, (draws, n)).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    detail = (
        f"Per seed: {', '.join(f'{100 * d:+.2f}' for d in differences)} points (paired bootstrap"
        " over seeds for the interval, paired t-test for p)."
    )
    mean, p = float(differences.mean()), _t_test(differences)
    return Comparison(mean, float(low), float(high), p, n, detail, "seeds")


def _t_test(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    from scipy.stats import ttest_1samp

    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        # differences that are all equal: scipy warns that it lost precision, and gives 0
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the given order (Holm 1979). -> as many, <= 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected
