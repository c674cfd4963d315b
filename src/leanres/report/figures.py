"""The figures of the report: each takes arrays and returns a matplotlib Figure.

Accuracies, confidences and shares come in [0, 1] and are drawn in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from leanres.metrics.accuracy import wilson_interval
from leanres.metrics.calibration import Bins
from leanres.report.style import BLUE, DASHES, FAINT, INK, ORANGE, SERIES, new_figure, styled

PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
MOST_CLASSES = 30  # that a figure names one by one
MOST_NUMBERS = 12  # classes up to which a confusion matrix shows its counts


def _rgba(color: str, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """The colour with each of the opacities: (...) -> (..., 4) in [0, 1]."""
    from matplotlib.colors import to_rgb

    rgb = np.broadcast_to(to_rgb(color), (*alpha.shape, 3))
    return np.concatenate((rgb, alpha[..., None]), axis=-1)


@styled
def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ylabel: str,
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    percent: bool = False,
    log: bool = False,
    xlabel: str = "epoch",
) -> Figure:
    """Lines over epochs: name -> (x, y), and `marks`, single points by name, such as the test.

    A line of up to 15 points shows each; `log` is the y axis's scale.
    """
    figure = new_figure()
    axes = figure.subplots()
    for place, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            np.asarray(x),
            np.asarray(y),
            DASHES[place % len(DASHES)],
            color=SERIES[place % len(SERIES)],
            marker="o" if len(np.asarray(x)) <= 15 else None,
            markersize=4,
            label=name,
        )
    for place, (name, (at, value)) in enumerate((marks or {}).items()):
        color = SERIES[(len(series) + place) % len(SERIES)]
        axes.plot(at, value, "D", color=color, markersize=7, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        axes.set_yscale("log")
    elif percent:
        axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """Names above the axes, where they hide no data; none for a single line."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 1:
        columns = min(4, len(names)) if max(map(len, names)) < 12 else 1
        figure.legend(loc="outside upper left", ncols=columns, handlelength=2.2)


@styled
def per_class(names: Sequence[str], correct: Sequence[int], totals: Sequence[int]) -> Figure:
    """Accuracy of each class with its 95 % Wilson interval, best at the top.

    Of more than 30 classes the 30 worst are shown; classes without images are left out.
    """
    rows = [(c / n, name, c, n) for name, c, n in zip(names, correct, totals, strict=True) if n]
    rows = sorted(rows)[:MOST_CLASSES]
    figure = new_figure(440, 70 + 22 * len(rows))
    axes = figure.subplots()
    shares = np.array([row[0] for row in rows])
    bounds = np.array([wilson_interval(c, n) for _, _, c, n in rows])
    # At 0 and 1 the bound is the share itself, give or take a rounding.
    reach = np.abs(np.stack((shares - bounds[:, 0], bounds[:, 1] - shares)))
    places = np.arange(len(rows))
    style: dict[str, Any] = {"ecolor": BLUE, "elinewidth": 2, "capsize": 0, "markersize": 7}
    axes.errorbar(shares, places, xerr=reach, fmt="o", color=BLUE, **style)
    axes.set_yticks(places, [name for _, name, _, _ in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlim(right=1)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("accuracy, with its 95 % interval")
    return figure


@styled
def confusion_matrix(counts: ArrayLike, names: Sequence[str]) -> Figure:
    """Counts (K, K), row = true class, column = predicted; shaded by the share of the row."""
    table = np.asarray(counts)
    k = len(table)
    side = min(620, 130 + 38 * k) if k <= MOST_NUMBERS else 520
    figure = new_figure(side, side - 30)
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    # Opacity grows with the square root, so that a share of 1 % can be seen at all.
    axes.imshow(_rgba(BLUE, 0.55 * np.sqrt(shares)), interpolation="nearest")
    axes.grid(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if k <= MOST_CLASSES:
        size = 10 if k <= MOST_NUMBERS else 8
        axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), names)
        axes.tick_params(labelcolor=INK, labelsize=size)
    if k <= MOST_NUMBERS:
        for row, column in np.argwhere(table > 0):
            number = f"{table[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", fontsize=9.5)
    return figure


@styled
def prediction_counts(
    predicted: Sequence[int], labels: Sequence[int], names: Sequence[str]
) -> Figure:
    """How often each class was predicted, beside how often it is the label."""
    order = np.argsort(np.asarray(predicted) - np.asarray(labels), kind="stable")
    if len(order) > MOST_CLASSES:  # the extremes on either side
        order = np.concatenate((order[: MOST_CLASSES // 2], order[-MOST_CLASSES // 2 :]))
    figure = new_figure(440, 80 + 22 * len(order))
    axes = figure.subplots()
    places = np.arange(len(order))
    axes.barh(places, np.asarray(predicted)[order], color=BLUE, height=0.62, label="predicted")
    label_style: dict[str, Any] = {"color": ORANGE, "markersize": 14, "markeredgewidth": 2.5}
    axes.plot(np.asarray(labels)[order], places, "|", label="labelled", **label_style)
    axes.set_yticks(places, [names[i] for i in order])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel("images")
    axes.grid(axis="y", visible=False)
    _legend(figure, axes)
    return figure


@styled
def confidence_histogram(confidence: ArrayLike, correct: ArrayLike) -> Figure:
    """How sure the network was when right and when wrong: (N,) confidences, (N,) bool.

    Counts on a logarithmic axis: mistakes are few.
    """
    sure, right = np.asarray(confidence), np.asarray(correct, bool)
    figure = new_figure()
    axes = figure.subplots()
    edges = np.linspace(0, 1, 21)
    for name, chosen, place in (("right", right, 0), ("wrong", ~right, 1)):
        counts = np.histogram(sure[chosen], edges)[0]
        axes.stairs(
            counts,
            edges,
            color=SERIES[place],
            linestyle=DASHES[place],
            linewidth=2,
            label=f"{name} ({int(chosen.sum()):,})",
        )
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set(xlabel="confidence of the predicted class", ylabel="images")
    _legend(figure, axes)
    return figure


@styled
def reliability_diagram(before: Bins, after: Bins | None = None) -> Figure:
    """Accuracy of the images of each confidence bin; on the diagonal it equals the confidence.

    `after` is the same with a temperature. A point's area shows its share of the images.
    """
    figure = new_figure(380, 340)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="perfect")
    named = {"as trained": before} | ({"with temperature": after} if after else {})
    for place, (name, bins) in enumerate(named.items()):
        color, share = SERIES[place], bins.count / bins.count.sum()
        x, y = bins.confidence.numpy(), bins.accuracy.numpy()
        axes.plot(x, y, DASHES[place], color=color, linewidth=1.5, label=name)
        axes.scatter(x, y, s=12 + 200 * share.numpy(), color=color, marker="os"[place])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    _legend(figure, axes)
    return figure


@styled
def pareto(
    params: Sequence[int],
    accuracy: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    names: Sequence[str],
    budget: int,
) -> Figure:
    """Accuracy with its interval against parameters (log axis), and the budget as a line.

    A filled point is on the front: no network here is both smaller and better.
    """
    figure = new_figure(420, 320)
    axes = figure.subplots()
    for i, name in enumerate(names):
        low, high = intervals[i]
        front = not any(
            (p <= params[i] and a > accuracy[i]) or (p < params[i] and a == accuracy[i])
            for p, a in zip(params, accuracy, strict=True)
        )
        axes.errorbar(
            params[i],
            accuracy[i],
            yerr=[[abs(accuracy[i] - low)], [abs(high - accuracy[i])]],
            fmt="o",
            color=BLUE,
            markerfacecolor=BLUE if front else "none",
            elinewidth=1.5,
        )
        # Half of the names to the left: runs of one network stand in one column.
        side: tuple[int, str] = (8, "left") if i % 2 == 0 else (-8, "right")
        axes.annotate(
            name,
            (params[i], accuracy[i]),
            (side[0], 6),
            textcoords="offset points",
            ha=side[1],
            fontsize=10,
        )
    axes.axvline(budget, color=ORANGE, linestyle="--", linewidth=1.5)
    axes.text(
        budget, 1.01, "budget", transform=axes.get_xaxis_transform(), color=ORANGE, ha="center"
    )
    axes.set_xscale("log")
    axes.set_xlim(min(*params, budget) / 2.5, max(*params, budget) * 2)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _short(count)))
    axes.set(xlabel="parameters", ylabel="accuracy")
    return figure


def _short(count: float) -> str:
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k"
