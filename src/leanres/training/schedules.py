"""SCHEDULES: the learning rate over the training, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, SupportsFloat

from leanres.errors import UserError
from leanres.registry import Range, Spec, Table

PEAK_EPOCH = 5.0  # of one-cycle


class SchedulePoint(NamedTuple):
    """Where in training a schedule is asked for its factor; steps count from 0."""

    step: int
    total: int  # steps of the schedule
    epoch_steps: int  # steps of an epoch
    lr: float  # the peak, which factors are shares of

    @property
    def progress(self) -> float:
        """The share of training done, below 1."""
        return self.step / max(1, self.total)


def _constant(point: SchedulePoint) -> float:
    return 1.0


def _linear(point: SchedulePoint) -> float:
    return 1 - point.progress


def _cosine(point: SchedulePoint, *, per_epoch: bool = False) -> float:
    """Half a cosine from the peak to 0; `per_epoch` holds it within an epoch. arXiv:1608.03983."""
    begun = point.step - point.step % point.epoch_steps if per_epoch else point.step
    return 0.5 * (1 + math.cos(math.pi * begun / max(1, point.total)))


def _steps(
    point: SchedulePoint,
    *,
    every_epochs: Annotated[int, Range(1, 100_000)] = 20,
    gamma: Annotated[float, Range(1e-6, 1)] = 0.1,
) -> float:
    """Times `gamma` after every so many epochs."""
    return gamma ** (point.step // point.epoch_steps // every_epochs)


def _one_cycle(
    point: SchedulePoint,
    *,
    peak_epoch: Annotated[float, Range(0, 100_000)] = PEAK_EPOCH,
    lr_min: Annotated[float, Range(1e-12, 1e3)] | None = None,
    annihilation: bool = False,
    shape: Literal["linear", "cosine"] = "linear",
    cycle_momentum: Annotated[tuple[float, ...], Range(0, 0.9999)] = (),
) -> float:
    """Rise from lr_min to the peak, reached `peak_epoch` epochs in, then fall to the last step.

    `lr_min` None: 1/25 of the peak. The fall ends at lr_min, or with `annihilation` at 1e-4 of
    it. shape: "linear" or "cosine". cycle_momentum: (most, least), as (0.95, 0.85); the momentum
    is least at the peak. arXiv:1708.07120; phases as in PyTorch's OneCycleLR.
    """
    if len(cycle_momentum) not in (0, 2):
        raise UserError(
            f"schedule one-cycle: cycle_momentum = {list(cycle_momentum)}: give the momentum at the"
            " start and at the peak, as in [0.95, 0.85], or []"
        )
    low = 1 / 25 if lr_min is None else lr_min / point.lr
    if low > 1:
        raise UserError(f"schedule one-cycle: lr_min = {lr_min} is above lr = {point.lr:g}")
    if not 0 < peak_epoch * point.epoch_steps < point.total:
        raise UserError(
            f"schedule one-cycle: peak_epoch = {peak_epoch:g} is not within the"
            f" {point.total / point.epoch_steps:g} epochs"
        )
    rising, share = _phase(point, peak_epoch)
    if rising:
        return _between(low, 1.0, share, shape)
    return _between(1.0, low * 1e-4 if annihilation else low, share, shape)


def _phase(point: SchedulePoint, peak_epoch: float) -> tuple[bool, float]:
    """Whether a cycle still rises, and the share of the rise or fall that is done."""
    peak = peak_epoch * point.epoch_steps - 1
    if point.step <= peak:
        return True, point.step / peak if peak > 0 else 1.0
    return False, (point.step - peak) / max(1, point.total - 1 - peak)


def _between(start: float, end: float, share: float, shape: str) -> float:
    share = 0.5 * (1 - math.cos(math.pi * share)) if shape == "cosine" else share
    return (1 - share) * start + share * end  # exact at both ends


SCHEDULES: Table[Callable[..., float]] = Table(
    "schedule",
    {
        "constant": _constant,
        "linear": _linear,
        "cosine": _cosine,
        "step": _steps,
        "one-cycle": _one_cycle,
    },
    takes=("point",),
)


def lr_factor(schedule: Spec, point: SchedulePoint, warmup: int = 0) -> float:
    """The share of the peak lr at a step: a linear rise over `warmup` steps, then the schedule.

    The rise reaches 1 at its last step, so that no step is lost at lr 0.
    """
    if point.step < warmup:
        return (point.step + 1) / warmup
    name, settings = schedule
    late = point._replace(step=point.step - warmup, total=point.total - warmup)
    factor = SCHEDULES[name](late, **settings)
    if not isinstance(factor, SupportsFloat) or not 0 <= float(factor) < math.inf:
        raise UserError(
            f"schedule {name} returned {factor!r} at step {point.step}: return a number of 0 or"
            " more, the share of the peak learning rate"
        )
    return float(factor)


def momentum_at(schedule: Spec, point: SchedulePoint) -> float | None:
    """The momentum at a step, where the schedule cycles it against the lr; else None."""
    name, settings = schedule
    if name != "one-cycle" or not settings.get("cycle_momentum"):
        return None
    most, least = settings["cycle_momentum"]
    rising, share = _phase(point, settings.get("peak_epoch", PEAK_EPOCH))
    start, end = (most, least) if rising else (least, most)
    return _between(start, end, share, settings.get("shape", "linear"))
