"""Networks within bounds: the widest of a shape under a budget, by exact counts."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from leanres.data.split import Split
from leanres.models.budget import Budget
from leanres.models.cost import Summary, count_params, summarize
from leanres.models.resnet import ResNetConfig

if TYPE_CHECKING:
    import optuna

NEAR = 0.99  # of the parameter budget, at least, is used by a candidate


@dataclass(frozen=True)
class Bounds:
    """What a candidate may cost. It uses between 99 % and all of the parameters."""

    budget: Budget = field(default_factory=lambda: Budget((("params", 5_000_000),)))
    multiple: int = 8  # of channels: matrix units work on blocks of this size

    @property
    def params(self) -> int:
        """The most parameters; those that fit a file of the size allowed, where that is fewer."""
        budget = self.budget
        halves, bytes_ = budget["file"] or 10**10, budget["file-int8"] or 10**10
        return min(budget["params"] or 5_000_000, halves // 2, bytes_)

    def admits(self, summary: Summary) -> bool:
        """Whether a network is within all of them."""
        return summary.params >= NEAR * self.params and self.budget.admits(summary)


def fit_widths(shape: ResNetConfig, growth: float, bounds: Bounds) -> ResNetConfig | None:
    """The widest network of this shape within the parameter budget; None if none uses 99 % of it.

    Widths grow by about `growth` from stage to stage, in multiples of `bounds.multiple`.
    """
    step = bounds.multiple

    def sized(sixteenths: int) -> ResNetConfig:
        base = sixteenths / 16
        widths = (step * max(1, round(base * growth**i)) for i in range(len(shape.depths)))
        return replace(shape, widths=tuple(widths))

    sixteenths = 16
    while _params(sized(2 * sixteenths)) <= bounds.params:
        sixteenths *= 2
    # The largest that fits: params rise with the base, and twice this one is too large.
    above = bisect_right(
        range(sixteenths, 2 * sixteenths), bounds.params, key=lambda n: _params(sized(n))
    )
    first = sized(max(16, sixteenths + above - 1))
    stages = range(len(shape.depths))
    # With one stage a step narrower, the others may use the budget better than by rounding alone.
    tries = [first, *(_widened(first, i, -step) for i in stages if first.widths[i] > step)]
    full = {_filled(config, bounds) for config in tries}
    fitting = [c for c in full if NEAR * bounds.params <= _params(c) <= bounds.params]
    return max(fitting, key=lambda c: (_params(c), c.widths), default=None)


def _filled(config: ResNetConfig, bounds: Bounds) -> ResNetConfig:
    """The config with its stages widened, the last one first, as far as the budget goes."""
    for stage in reversed(range(len(config.widths))):
        while _params(wider := _widened(config, stage, bounds.multiple)) <= bounds.params:
            config = wider
    return config


def _widened(config: ResNetConfig, stage: int, step: int) -> ResNetConfig:
    widths = list(config.widths)
    widths[stage] += step
    return replace(config, widths=tuple(widths))


@cache
def _params(config: ResNetConfig) -> int:
    return count_params(config)


def propose(
    trial: optuna.trial.BaseTrial, bounds: Bounds, train: Split
) -> tuple[ResNetConfig, Summary] | None:
    """A network for these images and its cost, as Optuna's trial chooses; None if out of bounds."""
    stages = trial.suggest_int("stages", 3, 4)
    depths = tuple(trial.suggest_int(f"depth_{i}", 1, 6) for i in range(stages))
    block = trial.suggest_categorical("block", ["basic", "wide"])
    growth = trial.suggest_float("growth", 1.0, 2.2, step=0.1)
    shape = ResNetConfig((bounds.multiple,) * stages, depths, block=block)
    shape = replace(shape, num_classes=len(train.classes), in_channels=train.channels)
    config = fit_widths(shape, growth, bounds)
    if config is None:
        return None
    channels, height, width = train.images.shape[1:]
    cost = summarize(config, (channels, height, width))
    return (config, cost) if bounds.admits(cost) else None
