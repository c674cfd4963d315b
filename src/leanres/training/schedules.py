"""SCHEDULES: the learning rate over the training, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from leanres.errors import UserError
from leanres.registry import Range, Spec, Table


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
    peak_epoch: Annotated[float, Range(0, 100_000)] = 5.0,
    lr_min: Annotated[float, Range(1e-12, 1e3)] | None = None,
    annihilation: bool = False,
    shape: Literal["linear", "cosine"] = "linear",
) -> float:
    """Rise from lr_min to the peak, reached `peak_epoch` epochs in, then fall to the last step.

    `lr_min` None: 1/25 of the peak. The fall ends at lr_min, or with `annihilation` at 1e-4 of
    it. shape: "linear" or "cosine". arXiv:1708.07120; phases as in PyTorch's OneCycleLR.
    """
    low = 1 / 25 if lr_min is None else lr_min / point.lr
    if low > 1:
        raise UserError(f"schedule one-cycle: lr_min = {lr_min} is above lr = {point.lr:g}")
    if not 0 < peak_epoch * point.epoch_steps < point.total:
        raise UserError(
            f"schedule one-cycle: peak_epoch = {peak_epoch:g} is not within the"
            f" {point.total / point.epoch_steps:g} epochs"
        )
    peak = peak_epoch * point.epoch_steps - 1
    if point.step <= peak:
        return _between(low, 1.0, point.step / peak if peak > 0 else 1.0, shape)
    end = low * 1e-4 if annihilation else low
    return _between(1.0, end, (point.step - peak) / max(1, point.total - 1 - peak), shape)


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
)


def lr_factor(schedule: Spec, point: SchedulePoint, warmup: int = 0) -> float:
    """The share of the peak lr at a step: a linear rise over `warmup` steps, then the schedule.

    The rise reaches 1 at its last step, so that no step is lost at lr 0.
    """
    if point.step < warmup:
        return (point.step + 1) / warmup
    name, settings = schedule
    late = point._replace(step=point.step - warmup, total=point.total - warmup)
    return SCHEDULES[name](late, **settings)
