"""Analysis of a range test: the sweep of the lr, smoothing of the losses, rules, the result.

How the losses of a sweep become a range of learning rates:

1. Cut the losses where their running mean exceeds `diverge_at` times its best value, or at NaN.
2. Smooth them with an exponential mean to both sides, which does not shift the curve.
3. Find the lowest point before the first rise (`lowest`). Everything beyond it is ignored.
4. Apply each of RULES to the curve up to there. `onset` gives lr_min; `minimum` gives lr_max, or
   `steepest` if the loss still falls at the end of the sweep.

Nothing here trains: the input is a list of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np

from leanres.errors import UserError
from leanres.registry import Range, Table, check_fields
from leanres.training.recipe import RATE, Recipe, learning_rates

MIN_POINTS = 8  # steps that a curve must have for a meaningful slope
MIN_FALL = 0.02  # share of the first loss; a smaller fall does not count
SLOPE_REACH = 0.05  # share of the steps; a slope between neighbours is mostly noise
SLOPE_WINDOW = 100  # slopes at an lr that much below that of the lowest loss are ignored as noise
ONSET_SLOPE = 0.2  # share of the steepest slope at which the loss begins to fall
# lr_max is the lr of the lowest loss divided by this: a loss rises only some steps after its lr
# became too high. Tuned on trainings of small networks (docs/log.md). It is not a stability limit:
# on quadratics of SGD, lr_max is 1 to 4 times 2 / L without noise (100 steps; what diverges first
# had vanished), and 0.01 to 0.2 times with noise, less with momentum.
LATE = 2
LOWER, HIGHER = "give a lower lr_min (--lr-min)", "give a higher lr_max (--lr-max)"
MIN_SPAN = 10  # lr_max / lr_min at least: a cycle that ends at lr_min has to settle

# (lowest lr, highest lr, number) -> as many lrs, rising.
MODES: Table[Callable[[float, float, int], Sequence[float]]] = Table(
    "mode",
    {
        "exponential": lambda low, high, n: np.geomspace(low, high, n).tolist(),
        "linear": lambda low, high, n: np.linspace(low, high, n).tolist(),
    },
)


@dataclass(frozen=True)
class LRSweep:
    """How the lr rises during a range test, and when the test stops early."""

    lr_min: Annotated[float, RATE] = 1e-6
    lr_max: Annotated[float, RATE] = 10.0
    steps: Annotated[int, Range(2 * MIN_POINTS, 100_000)] = 100  # more for small batches
    mode: Annotated[str, MODES] = "exponential"
    # Reach of the exponential mean of the loss, as a share of the steps.
    smoothing: Annotated[float, Range(0, 0.5)] = 0.05
    # The test stops where the running mean exceeds this multiple of its best value.
    diverge_at: Annotated[float, Range(1.01, 1e6)] = 4.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lr_min >= self.lr_max:
            given = f"lr_min = {self.lr_min:g}, lr_max = {self.lr_max:g}"
            raise UserError(f"{given}: give lr_min (--lr-min) below lr_max (--lr-max)")

    @property
    def lrs(self) -> Sequence[float]:
        """The lr of each step."""
        return MODES[self.mode](self.lr_min, self.lr_max, self.steps)

    @property
    def decay(self) -> float:
        """Decay per step of the exponential mean."""
        return max(0.0, 1 - 1 / max(1.0, self.smoothing * self.steps))


@dataclass(frozen=True)
class LRRange:
    """The result of a range test: its curve, an lr by each of RULES, and the range to train in.

    Learning rates are those of the main parameter group (the recipe's `lr`); in the test the other
    groups keep their ratio to it.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]  # finite, one per lr
    smoothed: tuple[float, ...]
    stopped: str  # where and why the test ended
    suggestions: dict[str, float]  # rule -> lr
    lr_min: float
    lr_max: float
    rules: dict[str, str]  # "lr_min" and "lr_max" -> the rule that gave it
    reasons: dict[str, str]  # "lr_min" and "lr_max" -> one sentence

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """The settings of the recipe that follow from the test.

        `lr` becomes `lr_max`, and the optimizer's other learning rates keep their ratio to it. A
        one-cycle schedule without an lr_min gets that of the test.
        """
        names = learning_rates(recipe.optimizer)
        rates = {name: self.lr_max * (getattr(recipe, name) / recipe.lr) for name in names}
        schedule, details = recipe.schedule
        if schedule != "one-cycle" or details.get("lr_min") is not None:
            return rates
        return rates | {"schedule": (schedule, {**details, "lr_min": self.lr_min})}


def stop_step(losses: Sequence[float], sweep: LRSweep) -> int:
    """The number of losses before the early stop; all of them if there is none."""
    best = math.inf
    for i, mean in enumerate(running_mean(losses, sweep.decay)):
        best = min(best, mean)
        if not mean <= sweep.diverge_at * best or math.isinf(mean):  # NaN compares as False
            return i
    return len(losses)


def running_mean(losses: Sequence[float], decay: float) -> list[float]:
    """Exponential mean up to each loss, bias-corrected (arXiv:1412.6980, sec. 3)."""
    return [total / weight for total, weight in _decayed_sums(losses, decay)]


def smooth(losses: Sequence[float], decay: float) -> list[float]:
    """Exponential mean to both sides of each loss; weights fall by `decay` per step of distance.

    A running mean lags behind: at decay 0.8 by 4 steps, which is a factor of 2 in the lr for 100
    steps over 7 decades.
    """
    left, right = _decayed_sums(losses, decay), _decayed_sums(losses[::-1], decay)[::-1]
    return [
        (a + b - loss) / (v + w - 1)  # both sides include the loss itself
        for (a, v), (b, w), loss in zip(left, right, losses, strict=True)
    ]


def _decayed_sums(losses: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """(weighted sum, sum of the weights) up to each loss."""
    total, weight, sums = 0.0, 0.0, []
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        sums.append((total, weight))
    return sums


@dataclass(frozen=True)
class LossCurve:
    """The smoothed loss against the lr, up to its lowest point."""

    lrs: list[float]
    loss: list[float]
    reach: int  # points to either side over which a slope is taken

    @property
    def slopes(self) -> dict[int, float]:
        """Position -> change of the loss per unit of ln(lr).

        Only for positions with points to both sides and an lr within SLOPE_WINDOW of the last.
        """
        r = max(1, min(self.reach, (len(self.loss) - 1) // 2))
        rise, run = (np.array(x) for x in (self.loss, np.log(self.lrs)))
        slopes = (rise[2 * r :] - rise[: -2 * r]) / (run[2 * r :] - run[: -2 * r])
        centred = enumerate(slopes.tolist(), start=r)
        return {i: s for i, s in centred if SLOPE_WINDOW * self.lrs[i + r] >= self.lrs[-1]}

    @property
    def steepest(self) -> int:
        """The position at which the loss falls fastest."""
        slopes = self.slopes
        return min(slopes, key=slopes.__getitem__)


def _steepest(curve: LossCurve) -> float:
    return curve.lrs[curve.steepest]


def _minimum(curve: LossCurve) -> float:
    return curve.lrs[-1] / LATE


def _onset(curve: LossCurve) -> float:
    slopes, i = curve.slopes, curve.steepest
    threshold = ONSET_SLOPE * slopes[i]
    while i in slopes and slopes[i] <= threshold:
        i -= 1
    return min(curve.lrs[i], _steepest(curve) / MIN_SPAN)


class Rule(NamedTuple):
    """A way to read an lr off a curve."""

    lr: Callable[[LossCurve], float]
    description: str  # where on the curve it lies


RULES: Table[Rule] = Table(
    "rule",
    {
        "onset": Rule(_onset, f"where the loss begins to fall, at most steepest / {MIN_SPAN}"),
        "minimum": Rule(_minimum, "half the lr of the lowest loss"),
        "steepest": Rule(_steepest, "where the loss falls fastest"),
    },
)


def analyse(losses: Sequence[float], sweep: LRSweep) -> LRRange:
    """Find the learning rates from the losses of the first steps of `sweep`, as outlined above.

    UserError if the losses are not finite, too few, flat, or rise from the start; it says what to
    change.
    """
    kept, stopped = _cut(losses, sweep)
    lrs, smoothed = list(sweep.lrs[: len(kept)]), smooth(kept, sweep.decay)
    least = _least_fall(kept, sweep.decay)
    low = lowest(smoothed, least)
    _check_fall(smoothed, low, least, lrs)
    reach = round(SLOPE_REACH * sweep.steps)
    curve = LossCurve(lrs[: low + 1], smoothed[: low + 1], reach)
    found = {name: rule.lr(curve) for name, rule in RULES.items()}
    rises_again = low < sweep.steps - 1 - reach  # if not, the sweep ends before the minimum
    highest = "minimum" if rises_again else "steepest"
    return LRRange(
        tuple(lrs),
        tuple(kept),
        tuple(smoothed),
        stopped,
        found,
        lr_min=found["onset"],
        lr_max=found[highest],
        rules={"lr_min": "onset", "lr_max": highest},
        reasons=_reasons(curve, found, rises_again),
    )


def _cut(losses: Sequence[float], sweep: LRSweep) -> tuple[list[float], str]:
    """The losses before the early stop, and a clause that says where and why the test ended."""
    last, lrs = stop_step(losses, sweep), sweep.lrs
    if not math.isfinite(losses[0]):
        raise UserError(
            f"the loss is {losses[0]} before the first update, whatever the lr: check the images,"
            ' or set precision = "float32"'
        )
    where = f"at lr {lrs[min(last, len(lrs) - 1)]:.2g}, step {last + 1} of {sweep.steps}"
    if last == len(losses):
        return list(losses), f"reached lr {lrs[last - 1]:.2g} after {last} steps"
    finite = math.isfinite(losses[last])
    event = f"exceeded {sweep.diverge_at:g} times its best" if finite else f"was {losses[last]}"
    if last < MIN_POINTS:
        raise UserError(f"the loss {event} {where}: too early for a curve; {LOWER}")
    return list(losses[:last]), f"the loss {event} {where}"


def _least_fall(losses: Sequence[float], decay: float) -> float:
    """The least fall of a smoothed curve that counts: 2 %, or four standard deviations of noise.

    The noise is that of an exponential mean over independent losses. Their own standard deviation
    is estimated from the median step between neighbours, 0.954 of it for a normal distribution.
    """
    noise = median(abs(b - a) for a, b in pairwise(losses)) / 0.954
    return max(MIN_FALL * losses[0], 4 * noise * math.sqrt((1 - decay) / (1 + decay)))


def lowest(smoothed: Sequence[float], least: float) -> int:
    """Position of the lowest point before the loss first rises by a quarter of its fall.

    Falls and rises of less than `least` do not count. A network may recover at an lr far above the
    one that made its loss rise, but it cannot start at that lr (SGD on digits: a loss of 2.30 after
    three epochs).
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
                f"the loss is lowest at lr {lrs[low]:.2g} already, step {low + 1}: {LOWER}"
            )
        return
    if max(smoothed) - first > least:
        raise UserError(
            f"the loss never falls below its start, {first:.3g}, and rises to {max(smoothed):.3g}"
            f" {over}: {LOWER}, or more steps"
        )
    raise UserError(f"the loss stays at {first:.3g} {over}: {HIGHER}, or more steps")


def _reasons(curve: LossCurve, found: dict[str, float], rises_again: bool) -> dict[str, str]:
    low = (
        f"below it the loss, {curve.loss[0]:.3g} at first, falls at less than"
        f" {100 * ONSET_SLOPE:.0f} % of its steepest slope"
    )
    if found["onset"] == found["steepest"] / MIN_SPAN:
        low = f"steepest / {MIN_SPAN}, because the loss falls steeply until shortly before it"
    high = f"half of {curve.lrs[-1]:.2g}, where the loss is lowest, {curve.loss[-1]:.3g}"
    if not rises_again:
        high = "the loss falls fastest there, and still at the end: test higher lrs for its minimum"
    return {"lr_min": low, "lr_max": high}
