"""Plots of an LR range test: a matplotlib figure, and a text chart for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from leanres.lr_finder.analysis import LRRange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers; each rule also has a marker of its own.
_BAND, _RAW, _SMOOTHED = "#F3EFD8", "#9FC5E8", "#0B3C5D"
_MARKS = {
    "onset": ("#009E73", "^"),
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
    """Raw and smoothed loss against lr, a marker for each rule; lr_min to lr_max is shaded.

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
    for rule, lr in result.suggestions.items():
        colour, shape = _MARKS[rule]
        label = f"{rule_label(result, rule)} {lr:.2g}"
        axes.plot(lr, loss_at(result, lr), shape, color=colour, ms=8, mec="white", label=label)
    axes.legend(frameon=False, loc="upper left")
    return drawing


LEFT = 7  # characters left of the plot area: the loss and the axis
ASCII = str.maketrans("·•│└─━", ".o|+-=")  # for a terminal without Unicode


def chart(result: LRRange, width: int = 60, height: int = 15) -> Text:
    """The curve in an area of `width` x `height` characters, with axes and initials of the rules.

    The axis is bold from lr_min to lr_max.
    """
    drawn = _Chart(result, width, height)
    drawn.draw_axes()
    drawn.draw_curve()
    return Text("\n").join(Text.assemble(*line) for line in drawn.lines)


class _Chart:
    """Lines of styled characters: the plot area, and below it the axis of the lr and its ticks."""

    def __init__(self, result: LRRange, width: int, height: int) -> None:
        self.result, self.width, self.height = result, width, height
        self.bottom, self.top = loss_window(result)
        lrs = (*result.lrs, *result.suggestions.values())
        self.low, self.high = math.log10(min(lrs)), math.log10(max(lrs))
        self.lines = [[(" ", "")] * (LEFT + width + 3) for _ in range(height + 2)]

    def write(self, row: int, column: int, text: str, style: str = "") -> None:
        self.lines[row][column : column + len(text)] = [(char, style) for char in text]

    def column(self, lr: float) -> int:
        share = (math.log10(lr) - self.low) / (self.high - self.low)
        return LEFT + round(share * (self.width - 1))

    def point(self, column: int, loss: float, char: str, style: str) -> None:
        if self.bottom <= loss <= self.top:
            share = (self.top - loss) / (self.top - self.bottom)
            self.write(round(share * (self.height - 1)), column, char, style)

    def draw_axes(self) -> None:
        for row in range(self.height):
            self.write(row, LEFT - 1, "│")
        middle = (self.top + self.bottom) / 2
        for row, loss in ((0, self.top), (self.height // 2, middle), (-3, self.bottom)):
            self.write(row, 0, f"{loss:>{LEFT - 2}.3g}")
        self.write(self.height, LEFT - 1, "└" + self.width * "─")
        low, high = self.column(self.result.lr_min), self.column(self.result.lr_max)
        self.write(self.height, low, (high - low + 1) * "━")
        for lr in self.ticks():
            text = f"{lr:g}"
            self.write(self.height + 1, self.column(lr) - len(text) // 2, text)

    def ticks(self) -> list[float]:
        """Up to 9 powers of ten; if there are fewer than two, both ends to two digits."""
        first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
        powers = [float(f"1e{i}") for i in range(first, last + 1, 1 + (last - first) // 9)]
        return powers if len(powers) > 1 else [float(f"{10**i:.2g}") for i in (self.low, self.high)]

    def draw_curve(self) -> None:
        columns = [self.column(lr) for lr in self.result.lrs]
        for column, loss in zip(columns, self.result.losses, strict=True):
            self.point(column, loss, "·", "dim")
        for column in range(columns[0], columns[-1] + 1):
            loss = float(np.interp(column, columns, self.result.smoothed))
            self.point(column, loss, "•", "bold blue")
        for rule, lr in self.result.suggestions.items():
            style = f"bold {_MARKS[rule][0]}"
            self.point(self.column(lr), loss_at(self.result, lr), rule[0].upper(), style)
