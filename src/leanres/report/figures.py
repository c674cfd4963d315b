"""The figures of the report: functions from arrays to a matplotlib Figure.

Accuracies, confidences and shares are in [0, 1] and drawn in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from leanres.errors import shortened
from leanres.metrics.calibration import Bins
from leanres.metrics.classification import wilson_interval
from leanres.report.style import BLUE, DASHES, FAINT, INK, ORANGE, SERIES, new_axes, styled

PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
MAX_CLASSES = 30  # up to which a figure names every class
MAX_NAME = 30  # letters of a class name beside an axis: the axis has to keep its room
MAX_CLASSES_WITH_COUNTS = 12  # up to which a confusion matrix shows its counts


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
    """Lines over epochs, name -> (x, y), and single points `marks`, such as the test accuracy.

    Lines of up to 15 points have markers. `percent` and `log` are for the y axis.
    """
    figure, axes = new_axes(xlabel=xlabel, ylabel=ylabel)
    for name, (x, y) in series.items():
        marker = "o" if len(np.asarray(x)) <= 15 else None
        axes.plot(np.asarray(x), np.asarray(y), marker=marker, markersize=4, label=name)
    for name, point in (marks or {}).items():
        axes.plot(*point, "D", markersize=7, label=name)
    if log:
        axes.set_yscale("log")
    elif percent:
        axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, where it hides no data; none for a single line."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 1:
        columns = min(4, len(names)) if max(map(len, names)) < 12 else 1
        figure.legend(loc="outside upper left", ncols=columns, handlelength=2.2)


@styled
def per_class(names: Sequence[str], correct: Sequence[int], totals: Sequence[int]) -> Figure:
    """Accuracy of each class with its 95 % Wilson interval, best at the top.

    Shows at most the 30 worst classes; classes without images are left out.
    """
    rows = [(c / n, name, c, n) for name, c, n in zip(names, correct, totals, strict=True) if n]
    rows = sorted(rows)[:MAX_CLASSES]
    figure, axes = _axes_with_names([name for _, name, _, _ in rows])
    shares = np.array([row[0] for row in rows])
    bounds = np.array([wilson_interval(c, n) for _, _, c, n in rows]).T
    # At 0 and 1 the bound equals the share up to rounding; matplotlib refuses negative lengths.
    reach = np.abs(bounds - shares)
    places = np.arange(len(rows))
    style: dict[str, Any] = {"ecolor": BLUE, "elinewidth": 2, "capsize": 0, "markersize": 7}
    axes.errorbar(shares, places, xerr=reach, fmt="o", color=BLUE, **style)
    axes.set(xlim=(None, 1), xlabel="accuracy, with its 95 % interval")
    axes.xaxis.set_major_formatter(PERCENT)
    return figure


def _axes_with_names(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each class, from the bottom to the top."""
    figure, axes = new_axes(440, 80 + 22 * len(names))
    axes.set_yticks(range(len(names)), _short_names(names))
    axes.tick_params(axis="y", labelcolor=INK)
    return figure, axes


def _short_names(names: Sequence[str]) -> list[str]:
    return [shortened(name, MAX_NAME) for name in names]


@styled
def confusion_matrix(counts: ArrayLike, names: Sequence[str]) -> Figure:
    """Confusion matrix (K, K) of counts, row = true class; shaded by the share of the row."""
    table = np.asarray(counts)
    k = len(table)
    side = min(620, 130 + 38 * k) if k <= MAX_CLASSES_WITH_COUNTS else 520
    figure, axes = new_axes(side, side - 30, xlabel="predicted class", ylabel="true class")
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    shade = 0.55 * np.sqrt(shares)  # the square root makes a share of 1 % visible
    axes.imshow(to_rgba_array(BLUE, shade.ravel()).reshape(k, k, 4), interpolation="nearest")
    axes.grid(False)
    if k <= MAX_CLASSES:
        size = 10 if k <= MAX_CLASSES_WITH_COUNTS else 8
        shown = _short_names(names)
        axes.set_xticks(range(k), shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), shown)
        axes.tick_params(labelcolor=INK, labelsize=size)
    if k <= MAX_CLASSES_WITH_COUNTS:
        for row, column in np.argwhere(table > 0):
            number = f"{table[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", fontsize=9.5)
    return figure


@styled
def prediction_counts(
    predicted: Sequence[int], labels: Sequence[int], names: Sequence[str]
) -> Figure:
    """How often each class is predicted, and how often it is the label.

    Of more than 30 classes those at both extremes are shown.
    """
    order = np.argsort(np.asarray(predicted) - np.asarray(labels), kind="stable")
    if len(order) > MAX_CLASSES:
        order = np.concatenate((order[: MAX_CLASSES // 2], order[-MAX_CLASSES // 2 :]))
    figure, axes = _axes_with_names([names[i] for i in order])
    places = np.arange(len(order))
    axes.barh(places, np.asarray(predicted)[order], color=BLUE, height=0.62, label="predicted")
    label_style: dict[str, Any] = {"color": ORANGE, "markersize": 14, "markeredgewidth": 2.5}
    axes.plot(np.asarray(labels)[order], places, "|", label="labelled", **label_style)
    axes.set_xlabel("images")
    axes.grid(axis="y", visible=False)
    _legend(figure, axes)
    return figure


@styled
def confidence_histogram(confidence: ArrayLike, correct: ArrayLike) -> Figure:
    """Histograms of the confidence (N,) of correct and of wrong predictions, (N,) bool.

    Counts are on a logarithmic axis because errors are few.
    """
    confidences, right = np.asarray(confidence), np.asarray(correct, bool)
    figure, axes = new_axes(xlabel="confidence of the predicted class", ylabel="images")
    edges = np.linspace(0, 1, 21)
    for i, (name, chosen) in enumerate({"correct": right, "wrong": ~right}.items()):
        counts = np.histogram(confidences[chosen], edges)[0]
        style: dict[str, Any] = {"color": SERIES[i], "linestyle": DASHES[i], "linewidth": 2}
        axes.stairs(counts, edges, label=f"{name} ({int(chosen.sum()):,})", **style)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.xaxis.set_major_formatter(PERCENT)
    _legend(figure, axes)
    return figure


@styled
def reliability_diagram(before: Bins, after: Bins | None = None) -> Figure:
    """Accuracy against confidence of each bin; on the diagonal they are equal.

    `after` are the bins after temperature scaling. The area of a point is its share of the images.
    """
    figure, axes = new_axes(380, 340, xlabel="confidence", ylabel="accuracy")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="perfect")
    named = {"as trained": before} | ({"with temperature": after} if after else {})
    for marker, (name, bins) in zip("os", named.items(), strict=False):
        x, y, share = bins.confidence, bins.accuracy, bins.count / bins.count.sum()
        (line,) = axes.plot(x.numpy(), y.numpy(), linewidth=1.5, label=name)
        area = 12 + 200 * share.numpy()
        axes.scatter(x, y, s=area, color=line.get_color(), marker=marker)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
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

    Filled points are Pareto-optimal: no other network is both smaller and more accurate.
    """
    figure, axes = new_axes(420, 320, xlabel="parameters", ylabel="accuracy")
    for i, name in enumerate(names):
        optimal = not any(
            (p <= params[i] and a > accuracy[i]) or (p < params[i] and a == accuracy[i])
            for p, a in zip(params, accuracy, strict=True)
        )
        reach = np.abs(np.subtract(intervals[i], accuracy[i]))[:, None]
        point: dict[str, Any] = {"fmt": "o", "color": BLUE, "elinewidth": 1.5}
        fill = BLUE if optimal else "none"
        axes.errorbar(params[i], accuracy[i], yerr=reach, markerfacecolor=fill, **point)
        # Every other name is on the left: runs of one network share a column.
        side: dict[str, Any] = {"ha": ("left", "right")[i % 2], "xytext": (8 * (-1) ** i, 6)}
        at = (params[i], accuracy[i])
        axes.annotate(name, at, textcoords="offset points", fontsize=10, **side)
    axes.axvline(budget, color=ORANGE, linestyle="--", linewidth=1.5)
    axes.text(
        budget, 1.01, "budget", transform=axes.get_xaxis_transform(), color=ORANGE, ha="center"
    )
    axes.set(xscale="log", xlim=(min(*params, budget) / 2.5, max(*params, budget) * 2))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    return figure


def _short(count: float, _position: int) -> str:
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k"
