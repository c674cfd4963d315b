"""What a range test's losses say: the sweep they were measured on, smoothing, rules, a verdict.

Nothing here trains: it reads a list of losses.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from leanres.errors import UserError
from leanres.registry import Table
from leanres.training.recipe import Recipe

MIN_POINTS = 8  # steps that a curve must have for a slope to mean something
MIN_FALL = 0.02  # share of the first loss; less than that is no fall
SLOPE_REACH = 0.05  # share of the steps: a slope between neighbours is mostly noise
NEAR = 100  # a fall that far below the lr of the lowest loss is noise, or owed to the steps alone
ONSET = 0.2  # share of the steepest slope at which the loss is said to fall
LATE = 2  # a loss climbs some steps after its lr became too high: on a quadratic at 1.2 times it
SPAN = 10  # between lr_min and lr_max at least: a cycle that ends at lr_min shall calm down

OWN_LRS = {"muon": ("bias_lr", "head_lr")}  # optimizer -> settings that are lrs besides `lr`

# Lowest lr, highest, how many -> as many, rising.
MODES: Table[Callable[[float, float, int], Sequence[float]]] = Table(
    "mode",
    {
        "exponential": lambda low, high, n: np.geomspace(low, high, n).tolist(),
        "linear": lambda low, high, n: np.linspace(low, high, n).tolist(),
    },
)


@dataclass(frozen=True)
class LRSweep:
    """How the lr rises, and when that ends early. The defaults of `find_lr`."""

    lr_min: float = 1e-6
    lr_max: float = 10.0
    steps: int = 100  # `find_lr` takes more where batches are small
    mode: str = "exponential"
    smoothing: float = 0.05  # reach of the running mean of the loss, as a share of the steps
    diverge_at: float = 4.0  # the test ends where that mean exceeds this multiple of its best

    def __post_init__(self) -> None:
        MODES[self.mode]  # an unknown name raises
        if not 0 < self.lr_min < self.lr_max < math.inf:
            raise UserError(
                f"lr_min = {self.lr_min:g}, lr_max = {self.lr_max:g}: give 0 < lr_min < lr_max"
            )
        if not 2 * MIN_POINTS <= self.steps <= 100_000:
            raise UserError(f"steps = {self.steps}: give {2 * MIN_POINTS} to 100000")
        if not 0 <= self.smoothing <= 0.5:
            raise UserError(f"smoothing = {self.smoothing:g}: give a share from 0 to 0.5")
        if not self.diverge_at > 1:
            raise UserError(f"diverge_at = {self.diverge_at:g}: give a number above 1")

    @property
    def lrs(self) -> Sequence[float]:
        """The lr of each step."""
        return MODES[self.mode](self.lr_min, self.lr_max, self.steps)

    @property
    def decay(self) -> float:
        """What the running mean keeps of itself per step."""
        return max(0.0, 1 - 1 / max(1.0, self.smoothing * self.steps))


@dataclass(frozen=True)
class LRRange:
    """What a range test saw, an lr by each rule of RULES, and which of them to train between.

    An lr is the main parameter group's (the recipe's `lr`): the others keep their share of it.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]  # finite, one per lr
    smoothed: tuple[float, ...]
    stopped: str  # where and why the test ended
    suggestions: dict[str, float]  # rule -> lr
    lr_min: float
    lr_max: float
    rules: dict[str, str]  # "lr_min" and "lr_max" -> the rule that gave it
    reasons: dict[str, str]  # the same -> one sentence

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """The settings of the recipe that follow from the test.

        `lr_max` for its lr, its other groups keeping their share as in the test; a one-cycle that
        names no lr_min of its own begins and ends at the test's.
        """
        names = ("lr", *OWN_LRS.get(recipe.optimizer, ()))
        rates = {name: self.lr_max * (getattr(recipe, name) / recipe.lr) for name in names}
        schedule, details = recipe.schedule
        if schedule != "one-cycle" or details.get("lr_min") is not None:
            return rates
        return rates | {"schedule": (schedule, {**details, "lr_min": self.lr_min})}


def end(losses: Sequence[float], sweep: LRSweep) -> int:
    """How many of the losses come before the early stop: all, where there is none."""
    best = math.inf
    for i, mean in enumerate(running_mean(losses, sweep.decay)):
        best = min(best, mean)
        if not mean <= sweep.diverge_at * best or math.isinf(mean):  # NaN compares as False
            return i
    return len(losses)


def running_mean(losses: Sequence[float], decay: float) -> list[float]:
    """Exponential mean up to each loss, its start from 0 corrected (arXiv:1412.6980, sec. 3)."""
    return [total / weight for total, weight in _sums(losses, decay)]


def smooth(losses: Sequence[float], decay: float) -> list[float]:
    """Exponential mean on both sides of each loss, the next ones weighing `decay` times less each.

    A running mean lags: by 4 steps at decay 0.8, which on 100 steps over 7 decades doubles an lr.
    """
    left, right = _sums(losses, decay), _sums(losses[::-1], decay)[::-1]
    return [
        (a + b - loss) / (v + w - 1)  # each side holds the loss itself
        for (a, v), (b, w), loss in zip(left, right, losses, strict=True)
    ]


def _sums(losses: Sequence[float], decay: float) -> list[tuple[float, float]]:
    total, weight, sums = 0.0, 0.0, []
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        sums.append((total, weight))
    return sums


@dataclass(frozen=True)
class Curve:
    """The smoothed loss against the lr, up to the first lowest point."""

    lrs: list[float]
    loss: list[float]
    reach: int  # points on either side that a slope is taken over

    @property
    def slopes(self) -> dict[int, float]:
        """Position -> change of the loss per natural logarithm of the lr.

        Only of the lrs within NEAR of the last, and where the reach fits.
        """
        r = max(1, min(self.reach, (len(self.loss) - 1) // 2))
        rise, run = (np.array(x) for x in (self.loss, np.log(self.lrs)))
        slopes = (rise[2 * r :] - rise[: -2 * r]) / (run[2 * r :] - run[: -2 * r])
        near = enumerate(slopes.tolist(), start=r)
        return {i: slope for i, slope in near if NEAR * self.lrs[i + r] >= self.lrs[-1]}


def _steepest(curve: Curve) -> float:
    slopes = curve.slopes
    return curve.lrs[min(slopes, key=slopes.__getitem__)]


def _minimum(curve: Curve) -> float:
    return curve.lrs[-1] / LATE


def _valley(curve: Curve) -> float:
    stretch = descent(curve.loss)
    low, high = curve.lrs[stretch[0]], curve.lrs[stretch[-1]]
    return float(low * (high / low) ** (2 / 3))


def _onset(curve: Curve) -> float:
    slopes = curve.slopes
    i = min(slopes, key=slopes.__getitem__)
    least = ONSET * slopes[i]
    while i in slopes and slopes[i] <= least:
        i -= 1
    return min(curve.lrs[i], _steepest(curve) / SPAN)


WHAT = {  # rule -> where on the curve its lr lies
    "onset": f"where the loss begins to fall, at most steepest / {SPAN}",
    "valley": "two thirds along the longest descent",
    "minimum": "half the lr of the lowest loss",
    "steepest": "where the loss falls fastest",
}
# curve -> lr.
RULES: Table[Callable[[Curve], float]] = Table(
    "rule",
    {
        "onset": _onset,
        "valley": _valley,
        "minimum": _minimum,
        "steepest": _steepest,
    },
)


def descent(values: Sequence[float]) -> list[int]:
    """The positions of a longest strictly falling subsequence (patience sorting)."""
    heads: list[float] = []  # for each length, the best last value, negated: these rise
    ends: list[int] = []  # and its position
    before: list[int] = []  # the position that comes before each in its subsequence
    for i, value in enumerate(values):
        length = bisect_left(heads, -value)
        heads[length : length + 1], ends[length : length + 1] = [-value], [i]
        before.append(ends[length - 1] if length else -1)
    chain = [ends[-1]]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    return chain[::-1]


def analyse(losses: Sequence[float], sweep: LRSweep) -> LRRange:
    """Read a curve: losses of the first steps of `sweep`, cut where they diverge.

    UserError where it is not finite, too short, flat, or rises from the start.
    """
    kept, stopped = _cut(losses, sweep)
    lrs, smoothed = list(sweep.lrs[: len(kept)]), smooth(kept, sweep.decay)
    least = _least_fall(kept, sweep.decay)
    low = lowest(smoothed, least)
    _check_fall(smoothed, low, least, lrs)
    reach = round(SLOPE_REACH * sweep.steps)
    curve = Curve(lrs[: low + 1], smoothed[: low + 1], reach)
    found = {name: rule(curve) for name, rule in RULES.items()}
    # Where the loss still falls at the end its minimum was not seen.
    turned = low < sweep.steps - 1 - reach
    highest = "minimum" if turned else "steepest"
    return LRRange(
        tuple(lrs),
        tuple(kept),
        tuple(smoothed),
        stopped,
        found,
        lr_min=found["onset"],
        lr_max=found[highest],
        rules={"lr_min": "onset", "lr_max": highest},
        reasons=_reasons(curve, found, turned),
    )


def _cut(losses: Sequence[float], sweep: LRSweep) -> tuple[list[float], str]:
    """The losses before the early stop, and a clause that says where the test ended and why."""
    last, lrs = end(losses, sweep), sweep.lrs
    if not math.isfinite(losses[0]):
        raise UserError(
            f"the loss is {losses[0]} before the first update, so no lr is at fault: check the"
            ' images, or set precision = "float32"'
        )
    where = f"at lr {lrs[min(last, len(lrs) - 1)]:.2g}, step {last + 1} of {sweep.steps}"
    if last == len(losses):
        return list(losses), f"reached lr {lrs[last - 1]:.2g} after {last} steps"
    finite = math.isfinite(losses[last])
    seen = f"exceeded {sweep.diverge_at:g} times its best" if finite else f"was {losses[last]}"
    if last < MIN_POINTS:
        raise UserError(f"the loss {seen} {where}: too early for a curve, lower lr_min")
    return list(losses[:last]), f"the loss {seen} {where}"


def _least_fall(losses: Sequence[float], decay: float) -> float:
    """How far a smoothed curve must fall to have fallen: 2 %, and more than noise would.

    Four standard deviations of a running mean over independent losses, whose own deviation is
    the median step from one to the next (0.954 of it, were they normal).
    """
    noise = median(abs(b - a) for a, b in pairwise(losses)) / 0.954
    return max(MIN_FALL * losses[0], 4 * noise * math.sqrt((1 - decay) / (1 + decay)))


def lowest(smoothed: Sequence[float], least: float) -> int:
    """The lowest point before the loss first climbs back by a quarter of what it fell.

    `least` is what counts as a fall or a climb. A network may recover at an lr far above the one
    that threw it off, but at that lr it cannot start (SGD on the digits: 2.30 after three epochs).
    """
    best = 0
    for i, loss in enumerate(smoothed):
        best = i if loss < smoothed[best] else best
        fall = smoothed[0] - smoothed[best]
        if fall > least and loss - smoothed[best] > max(least, fall / 4):
            break
    return best


def _check_fall(smoothed: Sequence[float], low: int, least: float, lrs: Sequence[float]) -> None:
    first, over = smoothed[0], f"from lr {lrs[0]:.2g} to {lrs[-1]:.2g}"
    if first - smoothed[low] > least:
        if low < MIN_POINTS // 2:
            raise UserError(
                f"the loss is lowest at lr {lrs[low]:.2g} already, step {low + 1}: lower lr_min"
            )
        return
    if max(smoothed) - first > least:
        raise UserError(
            f"the loss never falls below its start, {first:.3g}, and rises to {max(smoothed):.3g}"
            f" {over}: lower lr_min, or give more steps"
        )
    raise UserError(f"the loss stays at {first:.3g} {over}: raise lr_max, or give more steps")


def _reasons(curve: Curve, found: dict[str, float], turned: bool) -> dict[str, str]:
    begins = (
        f"below it the loss, {curve.loss[0]:.3g} at first, falls at less than"
        f" {100 * ONSET:.0f} % of its steepest slope"
    )
    if found["onset"] == found["steepest"] / SPAN:
        begins = f"steepest / {SPAN}, as the loss falls steeply until shortly before it"
    ends = f"half of {curve.lrs[-1]:.2g}, where the loss is lowest, {curve.loss[-1]:.3g}"
    if not turned:
        ends = "the loss falls fastest there, and still at the end: test higher lrs for its minimum"
    return {"lr_min": begins, "lr_max": ends}
