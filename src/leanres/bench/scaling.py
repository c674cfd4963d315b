"""How cost scales with the batch, the images and the network, and how linear each curve is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from leanres.bench.step import WARM_UP, endless, step_seconds
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.cost import count_params, summarize
from leanres.runs import run as runs
from leanres.training.device import Device
from leanres.training.loop import steps
from leanres.training.recipe import Recipe, StepCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_UNIT = 8  # widths are multiples of this, which tensor cores need


@dataclass(frozen=True)
class CostCurve:
    """Seconds against a quantity that they should grow linearly with, above a fixed cost."""

    grows: str  # what x counts
    unit: str  # one of them
    takes: str  # what the seconds are of
    x: tuple[float, ...]
    seconds: tuple[float, ...]
    notes: tuple[str, ...] = ()  # one a point, for people

    @property
    def line(self) -> tuple[float, float]:
        """(fixed seconds, seconds per unit of x) of the line that fits best.

        Least squares of the relative deviations: a small point counts as much as a large one.
        """
        slope, fixed = np.polyfit(self.x, self.seconds, 1, w=1 / np.array(self.seconds))
        return float(fixed), float(slope)

    @property
    def deviations(self) -> tuple[float, ...]:
        """Each point's seconds over the line's, less 1."""
        fixed, slope = self.line
        return tuple(s / (fixed + slope * x) - 1 for x, s in zip(self.x, self.seconds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with what the properties say."""
        fixed, slope = self.line
        return {
            "grows": self.grows,
            "unit": self.unit,
            "takes": self.takes,
            "x": self.x,
            "seconds": self.seconds,
            "notes": self.notes,
            "fixed_seconds": fixed,
            "seconds_per_unit": slope,
            "deviations": self.deviations,
        }


def batch_curve(
    recipe: Recipe, dataset: Dataset, device: Device, batches: Sequence[int], count: int
) -> CostCurve:
    """Seconds of a step, over `count` in a row, for each batch size.

    UserError for a batch of more images than there are.
    """
    most = len(dataset.with_val(recipe.val).train)
    if max(batches) > most:
        raise UserError(f"a batch of {max(batches):,} is more than the {most:,} images there are")
    seconds = []
    for size in batches:
        changed = replace(recipe, batch_size=size, accumulate=1)
        seconds.append(step_seconds(runs.prepare(changed, dataset, device), count))
    rates = tuple(f"{size / s:,.0f} images/s" for size, s in zip(batches, seconds, strict=True))
    return CostCurve("images in a batch", "image", "a step", tuple(batches), tuple(seconds), rates)


def images_curve(
    recipe: Recipe, dataset: Dataset, device: Device, shares: Sequence[float]
) -> CostCurve:
    """Seconds of an epoch on each share of the training images; above 1 they repeat.

    An epoch is whole batches: a partial one is not counted. UserError where two shares give the
    same number of images.
    """
    short = replace(recipe, epochs=1, val=0)
    counts = [max(2, round(share * len(dataset.train))) for share in shares]
    countss = [StepCounts(short, count) for count in counts]
    trained = tuple(counts.steps_per_epoch * counts.images_per_step for counts in countss)
    if len(set(trained)) < len(trained):
        raise UserError(f"shares {tuple(shares)}: two of these are as many images")
    seconds = []
    for count in counts:
        indices = torch.arange(count) % len(dataset.train)
        part = replace(dataset, train=dataset.train.subset(indices))
        run = runs.prepare(short, part, device)
        loop = endless(run)
        for _ in range(WARM_UP):
            next(loop)
        seconds.append(_epoch_seconds(run))
    names = tuple(f"{100 * share:g} %" for share in shares)
    return CostCurve("images in an epoch", "image", "an epoch", trained, tuple(seconds), names)


def _epoch_seconds(run: runs.Run) -> float:
    run.state.step = 0
    run.device.synchronize()
    begun = time.perf_counter()
    for _ in steps(run.state, run.setup):
        pass
    run.device.synchronize()
    return time.perf_counter() - begun


def network_curve(
    recipe: Recipe, dataset: Dataset, device: Device, networks: Sequence[ModelConfig], count: int
) -> CostCurve:
    """Seconds of a step against the multiply-adds of its images, for each network."""
    side = dataset.train.images.shape[-1]
    macs, seconds, notes = [], [], []
    for config in networks:
        run = runs.prepare(replace(recipe, model=config), dataset, device)
        summary = summarize(run.config, (3, side, side))
        macs.append(summary.macs * run.counts.images_per_step / 1e9)
        seconds.append(step_seconds(run, count))
        notes.append(f"{summary.params / 1e6:.2f} M params")
    grows = "10^9 multiply-adds of a forward pass"
    return CostCurve(grows, "10^9", "a step", tuple(macs), tuple(seconds), tuple(notes))


def widened(config: ModelConfig, budget: int) -> ModelConfig:
    """The network with all its stages scaled by one factor, as wide as `budget` parameters allow.

    UserError where even the narrowest is too large.
    """
    best = None
    for candidate in _widths(config.widths):
        fitted: ModelConfig = replace(config, widths=candidate)
        with torch.device("meta"):
            params = count_params(fitted.build())
        if params > budget:
            break
        best = fitted
    if best is None:
        raise UserError(f"a budget of {budget:,}: the narrowest such network has {params:,} params")
    return best


def _widths(base: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Widths in the proportions of `base`, the narrowest first: endless."""
    for units in itertools.count(1):
        yield tuple(WIDTH_UNIT * round(units * width / min(base)) for width in base)


def figure(curves: Sequence[CostCurve]) -> Figure:
    """A panel a curve: its points, and the line they should lie on. Save it with `.savefig`."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    for axes, curve in zip(drawing.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        _draw(axes, curve)
    return drawing


def _draw(axes: Axes, curve: CostCurve) -> None:
    fixed, slope = curve.line
    ends = np.array([0, max(curve.x)])
    axes.plot(ends, fixed + slope * ends, color="#9FC5E8", lw=1.5, zorder=1)
    axes.scatter(curve.x, curve.seconds, color="#0B3C5D", s=28, zorder=2)
    below = (-np.inf, *curve.seconds[:-1])
    for x, seconds, last, note in zip(curve.x, curve.seconds, below, curve.notes, strict=True):
        right = x < 0.6 * max(curve.x)
        crowded = seconds - last < 0.06 * max(curve.seconds)  # the label before it is in the way
        axes.annotate(
            note,
            (x, seconds),
            xytext=(7 if right else -7, (2 if crowded else -4) if right else 4),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
        )
    worst = max(curve.deviations, key=abs)
    axes.set_title(f"off the line by {100 * abs(worst):.1f} % at most", fontsize=10, loc="left")
    axes.set_xlabel(curve.grows)
    axes.set_ylabel(f"seconds {curve.takes}")
    axes.set_xlim(0, 1.05 * max(curve.x))
    axes.set_ylim(0, 1.12 * max(curve.seconds))
    axes.spines[["top", "right"]].set_visible(False)
