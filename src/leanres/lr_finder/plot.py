"""Plots of an LR range test: a matplotlib figure, and a text chart for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from leanres.lr_finder.analysis import LRRange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers; each rule also has a marker of its own.
_BAND, _RAW, _SMOOTHED = "#F3EFD8", "#9FC5E8", "#0B3C5D"
_MARKS = {
    "onset": ("#009E73", "^"),
    "valley": ("#CC79A7", "D"),
    "minimum": ("#E69F00", "s"),
    "steepest": ("#D55E00", "o"),
}


def loss_window(result: LRRange) -> tuple[float, float]:
    """The range of losses to show: all that diverges would flatten the rest of the curve."""
    low, first = min(*result.smoothed, *result.losses), result.smoothed[0]
    return low - 0.1 * (first - low), first + 0.5 * (first - low)


def loss_at(result: LRRange, lr: float) -> float:
    """The smoothed loss at an lr, interpolated linearly in log(lr); constant beyond its ends."""
    return float(np.interp(math.log(lr), np.log(result.lrs), result.smoothed))


def rule_label(result: LRRange, rule: str) -> str:
    """The name of a rule after that of the bound it gave, if any: "lr_max, minimum"."""
    return ", ".join([*(name for name, by in result.rules.items() if by == rule), rule])


def figure(result: LRRange) -> Figure:
    """Raw and smoothed loss against lr with a marker for each rule; lr_min to lr_max is shaded.

    Save it with `.savefig("lr.png", dpi=150)`.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 4.8), layout="constrained")
    axes = drawing.add_subplot(xscale="log", xlabel="lr of the main group", ylabel="training loss")
    axes.axvspan(result.lr_min, result.lr_max, color=_BAND, lw=0)
    axes.plot(result.lrs, result.losses, color=_RAW, lw=1.2, label="each step")
    axes.plot(result.lrs, result.smoothed, color=_SMOOTHED, lw=2.2, label="smoothed")
    axes.set_ylim(*loss_window(result))
    axes.set_title(f"LR range test: {result.stopped}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _mark_rules(axes, result)
    axes.legend(frameon=False, loc="upper left")
    return drawing


def _mark_rules(axes: Axes, result: LRRange) -> None:
    """A marker on the curve, its label below; the leftmost label is highest, so none overlap."""
    bottom, top = axes.get_ylim()
    ranked = sorted(result.suggestions.items(), key=lambda item: item[1], reverse=True)
    for rank, (rule, lr) in enumerate(ranked):
        colour, shape = _MARKS[rule]
        height = bottom + (0.04 + 0.07 * rank) * (top - bottom)
        axes.plot([lr, lr], [height, loss_at(result, lr)], color=colour, lw=1)
        axes.plot(lr, loss_at(result, lr), shape, color=colour, ms=8, mec="white")
        axes.annotate(
            f"{rule_label(result, rule)} {lr:.2g}",
            (lr, height),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color="#222222",
            fontweight="bold" if rule in result.rules.values() else "normal",
            fontsize=9,
        )


# Characters of a text chart: raw loss, smoothed loss, side, corner, axis, axis in the range.
UNICODE, ASCII = tuple("·•│└─━"), tuple(".o|+-=")
_LEFT = 7  # characters left of the plot area: the loss and the axis


def chart(
    result: LRRange, width: int = 60, height: int = 15, glyphs: tuple[str, ...] = UNICODE
) -> Text:
    """The curve in an area of `width` x `height` characters, with axes and initials of the rules.

    The axis is bold from lr_min to lr_max; the initial of a rule is below its lr.
    """
    rows = [*_plot_area(result, width, height, glyphs), *_axis(result, width, glyphs)]
    return Text("\n").join([*rows, *_initials(result, width)])


def _ends(result: LRRange) -> tuple[float, float]:
    """The lowest and the highest lr of the chart."""
    lrs = (*result.lrs, *result.suggestions.values())
    return min(lrs), max(lrs)


def _column_of(result: LRRange, lr: float, width: int) -> int:
    low, high = map(math.log, _ends(result))
    return round((math.log(lr) - low) / (high - low) * (width - 1))


def _plot_area(result: LRRange, width: int, height: int, glyphs: tuple[str, ...]) -> list[Text]:
    (raw, mean, side, *_), (bottom, top) = glyphs, loss_window(result)
    cells = [[(" ", "")] * width for _ in range(height)]

    def put(column: int, loss: float, glyph: str, style: str) -> None:
        if bottom <= loss <= top:
            cells[round((top - loss) / (top - bottom) * (height - 1))][column] = (glyph, style)

    columns = [_column_of(result, lr, width) for lr in result.lrs]
    for column, loss in zip(columns, result.losses, strict=True):
        put(column, loss, raw, "dim")
    for column in range(columns[0], columns[-1] + 1):
        loss = float(np.interp(column, columns, result.smoothed))
        put(column, loss, mean, "bold blue")
    named = {0: top, height // 2: (top + bottom) / 2, height - 1: bottom}
    labels = (f"{named[i]:.3g}" if i in named else "" for i in range(height))
    return [
        Text.assemble(f"{label:>{_LEFT - 2}} {side}", *row)
        for label, row in zip(labels, cells, strict=True)
    ]


def _axis(result: LRRange, width: int, glyphs: tuple[str, ...]) -> list[Text]:
    low, high = (_column_of(result, lr, width) for lr in (result.lr_min, result.lr_max))
    *_, corner, thin, bold = glyphs
    line = [bold if low <= i <= high else thin for i in range(width)]
    names = [" "] * (width + _LEFT + 3)
    for lr in _ticks(result):
        text = f"{lr:g}"
        start = max(0, _LEFT + _column_of(result, lr, width) - len(text) // 2)
        if not "".join(names[max(0, start - 1) : start + len(text) + 1]).strip():
            names[start : start + len(text)] = text
    return [Text(f"{corner:>{_LEFT}}" + "".join(line)), Text("".join(names).rstrip())]


def _ticks(result: LRRange) -> list[float]:
    """The powers of ten in the range; if there are fewer than two, its ends to two digits."""
    low, high = _ends(result)
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [float(f"1e{i}") for i in range(first, last + 1)]
    return powers if len(powers) > 1 else [float(f"{end:.2g}") for end in (low, high)]


def _initials(result: LRRange, width: int) -> list[Text]:
    """The initial of each rule in its column, on a further line if the column is taken."""
    lines: list[dict[int, tuple[str, str]]] = []
    for rule, lr in result.suggestions.items():
        column = _column_of(result, lr, width)
        if not any(column not in line for line in lines):
            lines.append({})
        free = next(line for line in lines if column not in line)
        free[column] = (rule[0].upper(), f"bold {_MARKS[rule][0]}")
    left = " " * _LEFT
    return [
        Text.assemble(left, *(line.get(i, (" ", "")) for i in range(max(line) + 1)))
        for line in lines
    ]
