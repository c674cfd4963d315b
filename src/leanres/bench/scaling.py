"""How the time of training scales with the batch, the images and the network: linear or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from leanres.bench.step import step_seconds
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.cost import count_params, summarize
from leanres.models.zoo import network_name
from leanres.runs import run as runs
from leanres.training.device import Device
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_UNIT = 8  # widths are multiples of this, which tensor cores need


@dataclass(frozen=True)
class CostCurve:
    """Seconds that should grow linearly with a quantity, x, above a fixed cost."""

    grows: str  # what x counts
    unit: str  # of x
    takes: str  # what takes the seconds: "per step" or "per epoch"
    x: tuple[float, ...]
    seconds: tuple[float, ...]
    notes: tuple[str, ...] = ()  # a label for each point

    @property
    def line(self) -> tuple[float, float]:
        """(fixed seconds, seconds per unit of x) of the fitted line.

        Least squares of the relative deviations, so that small points count as much as large ones.
        """
        slope, fixed = np.polyfit(self.x, self.seconds, 1, w=1 / np.array(self.seconds))
        return float(fixed), float(slope)

    @property
    def deviations(self) -> tuple[float, ...]:
        """Each point's seconds over the line's, less 1."""
        fixed, slope = self.line
        return tuple(s / (fixed + slope * x) - 1 for x, s in zip(self.x, self.seconds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The fields and the fit, for JSON."""
        fixed, slope = self.line
        line = {"fixed_seconds": fixed, "seconds_per_unit": slope, "deviations": self.deviations}
        return asdict(self) | line


def batch_curve(
    recipe: Recipe, dataset: Dataset, device: Device, batches: Sequence[int], count: int
) -> CostCurve:
    """Seconds per step for each batch size, mean of `count` steps in a row.

    UserError for a batch of more images than there are.
    """
    most = len(dataset.with_val(recipe.val).train)
    if max(batches) > most:
        raise UserError(f"a batch of {max(batches):,} is more than the {most:,} images there are")
    points = []
    for size in batches:
        changed = replace(recipe, batch_size=size, accumulate=1)
        seconds = step_seconds(runs.prepare(changed, dataset, device), count)
        points.append((size, seconds, f"{size / seconds:,.0f} images/s"))
    return CostCurve("images in a batch", "image", "per step", *zip(*points, strict=True))


def images_curve(
    recipe: Recipe, dataset: Dataset, device: Device, shares: Sequence[float]
) -> CostCurve:
    """Seconds per epoch on each share of the training images; above 1 images repeat.

    Only whole batches are counted. UserError where two shares give the same number of images.
    """
    short = replace(recipe, epochs=1, val=0)
    available = [max(2, round(share * len(dataset.train))) for share in shares]
    epochs = [StepCounts(short, images) for images in available]
    trained = [epoch.total * epoch.images_per_step for epoch in epochs]
    if len(set(trained)) < len(trained):
        raise UserError(f"shares {tuple(shares)}: two of these give the same number of images")
    seconds = []
    for images, epoch in zip(available, epochs, strict=True):
        indices = torch.arange(images) % len(dataset.train)
        part = replace(dataset, train=dataset.train.subset(indices))
        run = runs.prepare(short, part, device)
        seconds.append(epoch.total * step_seconds(run, epoch.total))
    notes = tuple(f"{100 * share:g} %" for share in shares)
    return CostCurve(
        "images in an epoch", "image", "per epoch", tuple(trained), tuple(seconds), notes
    )


def network_curve(
    recipe: Recipe, dataset: Dataset, device: Device, networks: Sequence[ModelConfig], count: int
) -> CostCurve:
    """Seconds per step against the multiply-adds of a batch's forward pass, for each network."""
    side = dataset.train.images.shape[-1]
    points = []
    for config in networks:
        run = runs.prepare(replace(recipe, model=config), dataset, device)
        summary = summarize(run.config, (run.config.in_channels, side, side))
        macs = summary.macs * run.setup.counts.images_per_step / 1e9
        points.append((macs, step_seconds(run, count), f"{summary.params / 1e6:.2f} M params"))
    grows = "10^9 multiply-adds of a forward pass"
    return CostCurve(grows, "10^9", "per step", *zip(*points, strict=True))


def widened(config: ModelConfig, budget: int) -> ModelConfig:
    """The network with the widths of all stages scaled by one factor, as far as `budget` allows.

    `budget` is a number of parameters. UserError where even the narrowest network has more.
    """
    if not config.widths:
        name = network_name(config)
        raise UserError(f"{name} has no stages that are known: it cannot be widened")
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
    """Widths in the proportions of `base`, the narrowest first, without end."""
    for units in itertools.count(1):
        yield tuple(WIDTH_UNIT * round(units * width / min(base)) for width in base)


def figure(curves: Sequence[CostCurve]) -> Figure:
    """A panel per curve: its points and the fitted line."""
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
        crowded = seconds - last < 0.06 * max(curve.seconds)  # by the label of the last point
        axes.annotate(
            note,
            (x, seconds),
            xytext=(7 if right else -7, (2 if crowded else -4) if right else 4),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
        )
    worst = max(curve.deviations, key=abs)
    axes.set_title(f"at most {100 * abs(worst):.1f} % off the line", fontsize=10, loc="left")
    axes.set_xlabel(curve.grows)
    axes.set_ylabel(f"seconds {curve.takes}")
    axes.set_xlim(0, 1.05 * max(curve.x))
    axes.set_ylim(0, 1.12 * max(curve.seconds))
    axes.spines[["top", "right"]].set_visible(False)
