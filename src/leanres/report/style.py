"""How figures look, and a matplotlib Figure as inline SVG that follows the page's colours.

A figure is drawn in the colours of the light theme. In the page each of them becomes a CSS
variable, which the dark theme sets anew; text stays text, in the page's own font.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe and Ito's colours, told apart by the colour-blind; the first three darkened for white paper.
# Every colour is a name in the page's style sheet: light here, dark there.
INK, FAINT, GRID = "#1c2430", "#5b6675", "#d8dee6"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0068a8", "#c04f00", "#00795a", "#a8478a", "#3c8dbc"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
DASHES = ("-", "--", "-.", ":")  # no series is told by its colour alone
NAMES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    SKY: "sky",
}

LEAST = 0.75  # of its size, to which a figure shrinks on a small screen before it scrolls

RC: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",  # text as text: small, searchable, in the reader's font
    "svg.hashsalt": "leanres",  # the same figure, the same bytes
    "text.parse_math": False,  # a class may be called "$5"
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A figure function that draws in the house style, whatever the caller's settings are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float = 380, height: float = 260) -> Figure:
    """An empty figure of that size in CSS pixels; it belongs to no window and no global list."""
    return Figure(figsize=(width / 72, height / 72))  # an SVG unit is 1/72 of matplotlib's inch


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element for a page; `label` is its alternative text."""
    raw = io.StringIO()
    with mpl.rc_context(RC), warnings.catch_warnings():
        # The font that measures the text may lack a class name's letters; the reader's has them.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(raw, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format")))
    return _tidy(raw.getvalue(), label)


def _tidy(svg: str, label: str) -> str:
    """Only what a page needs: no prolog, no metadata, no ids but those that are referred to."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    body = svg[svg.index(">", box.end()) + 1 :]
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", body))
    mark = f"f{abs(hash_text(label + body)) % 16**6:06x}-"  # ids are unique over the whole page
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{mark}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\g<1>#{mark}", body)
    body = re.sub(r"(font-family:|font: [\d.]+px) [^;\"]+", r"\1 var(--sans)", body)
    body = re.sub("|".join(NAMES), lambda m: f"var(--{NAMES[m[0]]})", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    width = float(box[1].split()[2])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{box[1]}" style="max-width:{width:.0f}px; min-width:{LEAST * width:.0f}px"'
        f' role="img" aria-label="{html.escape(label)}">{body}'
    )


def hash_text(text: str) -> int:
    """A number of the text, the same in every process (Python's own hash is not)."""
    import zlib

    return zlib.crc32(text.encode())
