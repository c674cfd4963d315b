"""Significance of differences in accuracy: McNemar's test over images, t-test over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LEVEL = 0.05  # significance level: 95 % intervals exclude 0 where p is below it
ROUNDING = 1e-12  # a spread of shares below this is floating-point error


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a second network or recipe minus that of a first one, as shares.

    `low` and `high` are the bounds of the 95 % interval of the difference, `p` is the two-sided
    p-value of no difference. All are None for a single pair of seeds, whose spread is unknown.
    `n` counts the images or the pairs of seeds.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    detail: str  # how it was computed, as sentences
    unit: str  # what n counts: "images" or "seeds"

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval: between seeds, the difference is `difference` ± this."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def distinguishable(self) -> bool:
        """Whether p is below 0.05; the interval then excludes 0."""
        return self.p is not None and self.p < LEVEL

    @property
    def verdict(self) -> str:
        """The second one is "better", "worse", or "not distinguishable at n = 3"."""
        if self.p is None:
            return f"one {self.unit.removesuffix('s')}: untested"
        if not self.distinguishable:
            return f"not distinguishable at {self._n}"
        return "better" if self.difference > 0 else "worse"

    @property
    def _n(self) -> str:
        return f"n = {self.n:,}" + (" images" if self.unit == "images" else "")

    def sentence(self, first: str, second: str) -> str:
        """The verdict and its numbers: "b is better than a at n = 3. b minus a is ...".

        `first` and `second` are the names of the two.
        """
        difference = f"{second} minus {first} is {100 * self.difference:+.2f} points"
        if self.low is None or self.high is None or self.p is None:
            return f"{self.verdict}. {difference}. {self.detail}"
        verdict = f"{second} and {first} are {self.verdict}"
        if self.distinguishable:
            verdict = f"{second} is {self.verdict} than {first} at {self._n}"
        interval = f"95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}"
        return f"{verdict}. {difference} ({interval}), {format_p(self.p)}. {self.detail}"


def format_p(p: float) -> str:
    """A p-value with two digits: "p = 0.035", or "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def mean_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; the latter is None for a single value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd}


def mcnemar(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two networks on the same images: `first` and `second` (N,) bool, True where correct.

    If both are equally good, each image on which exactly one is correct is a fair coin toss: an
    exact, two-sided binomial test (McNemar, Psychometrika 12:153, 1947). The interval is that of
    Clopper and Pearson for these images, which agrees with the test. Raises ValueError for unequal
    lengths or no images.
    """
    from scipy.stats import binomtest  # takes most of a second to import

    if first.shape != second.shape or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} images: give the same ones, 1 or more")
    n = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    differing = gained + lost
    detail = (
        f"Exactly one of them is correct on {differing:,} of {n:,} images: the second on"
        f" {gained:,}, the first on {lost:,} (exact McNemar test). This compares two trained"
        " networks, not two recipes: another seed gives another network."
    )
    if not differing:
        return PairedDifference(0.0, 0.0, 0.0, 1.0, n, detail, "images")
    test = binomtest(gained, differing)
    bounds = test.proportion_ci(1 - LEVEL, "exact")
    low, high = (float(2 * share - 1) * differing / n for share in (bounds.low, bounds.high))
    return PairedDifference((gained - lost) / n, low, high, float(test.pvalue), n, detail, "images")


def gain_over_mean(members: Tensor, ensemble: Tensor) -> PairedDifference:
    """Compare an ensemble with the mean of its networks: (M, N) and (N,) bool, True where correct.

    Each image gives a difference, from -1 to 1; interval and p are those of a t-test of their mean
    over the images. A single image has neither. Raises ValueError for unequal lengths or no images.
    """
    if members.shape[1:] != ensemble.shape or not len(ensemble):
        raise ValueError(f"{tuple(members.shape)} and {tuple(ensemble.shape)}: give (M, N), (N,)")
    differences = (ensemble.double() - members.double().mean(0)).numpy()
    n, mean = len(differences), float(differences.mean())
    detail = "The interval is of the difference on each image (paired t-test)."
    if n == 1:
        return PairedDifference(mean, None, None, None, n, detail, "images")
    return PairedDifference(mean, *_t_interval(differences), n, detail, "images")


def paired_seeds(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two recipes by the accuracies of their runs, paired by seed: n shares each, n >= 1.

    The interval and p are those of Student's paired t-test, so the interval excludes 0 exactly
    where p < 0.05. A single pair has neither. Raises ValueError for unequal lengths or no pairs.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} runs: give pairs of runs, 1 or more")
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        detail = "Train both with at least 2 common seeds for a verdict."
        return PairedDifference(mean, None, None, None, n, detail, "seeds")
    per_seed = ", ".join(f"{100 * d:+.2f}" for d in differences)
    detail = f"Per seed: {per_seed} points (paired t-test and interval)."
    return PairedDifference(mean, *_t_interval(differences), n, detail, "seeds")


def _t_interval(
    differences: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[float, float, float]:
    """(low, high, p) of Student's t-test of a mean of 0."""
    from scipy.stats import ttest_1samp

    mean = float(differences.mean())
    if np.ptp(differences) < ROUNDING:  # scipy warns of a loss of precision
        return mean, mean, 1.0 if abs(mean) < ROUNDING else 0.0
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return float(low), float(high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons, in the given order, at most 1 (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        corrected[i] = floor = max(floor, min(1.0, left * p_values[i]))
    return corrected
