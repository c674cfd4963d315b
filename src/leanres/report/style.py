"""The style of figures, and conversion of a matplotlib Figure to inline SVG.

Figures are drawn in the colours of the light theme. In the SVG each colour becomes a CSS variable
of the page, which the dark theme redefines. Text stays text, in the font of the page.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
import zlib
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

P = ParamSpec("P")

# Okabe and Ito's palette for colour-blind readers, the first three colours darkened for a white
# background. Each one is a variable of the page's style sheet, which has a dark variant.
NAMES = {
    "#1c2430": "ink",
    "#5b6675": "faint",
    "#d8dee6": "grid",
    "#0068a8": "blue",
    "#c04f00": "orange",
    "#00795a": "green",
    "#a8478a": "purple",
    "#3c8dbc": "sky",
}
INK, FAINT, GRID, *SERIES = NAMES
BLUE, ORANGE = SERIES[:2]
DASHES = ("-", "--", "-.", ":")  # series do not differ by colour alone

MIN_SCALE = 0.75  # a figure shrinks to this share of its size before it scrolls

_COLORS, _DASHES = cycler(color=SERIES), cycler(linestyle=DASHES)
RC: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",  # text, not paths: small, searchable, in the reader's font
    "svg.hashsalt": "leanres",  # the same figure gives the same bytes
    "text.parse_math": False,  # a class may be named "$5"
    "font.size": 11,
    "axes.titlesize": 11,
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
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "axes.prop_cycle": len(DASHES) * _COLORS + len(SERIES) * _DASHES,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw a figure in the style of the report, whatever the caller's rcParams are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float = 380, height: float = 260) -> Figure:
    """An empty figure, sizes in CSS pixels, that is not registered with pyplot."""
    return Figure(figsize=(width / 72, height / 72))  # SVG has 72 units per matplotlib inch


def new_axes(width: float = 380, height: float = 260, **labels: str) -> tuple[Figure, Axes]:
    """A figure of one plot; `labels` are its `xlabel` and `ylabel`."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot(**labels)


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element; `label` is its alternative text."""
    raw = io.StringIO()
    with mpl.rc_context(RC), warnings.catch_warnings():
        # The font used for the layout may lack letters of a class name that the reader's font has.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(raw, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format")))
    return _tidy(raw.getvalue(), label)


def _tidy(svg: str, label: str) -> str:
    """Remove what a page does not need: prolog, metadata, and ids that nothing refers to."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    body = svg[svg.index(">", box.end()) + 1 :]
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", body))
    prefix = f"f{zlib.crc32((label + body).encode()) % 16**6:06x}-"  # unique ids within the page
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", body)
    body = re.sub(r"(font-family:|font: [\d.]+px) [^;\"]+", r"\1 var(--sans)", body)
    body = re.sub("|".join(NAMES), lambda m: f"var(--{NAMES[m[0]]})", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    width = float(box[1].split()[2])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{box[1]}" style="max-width:{width:.0f}px; min-width:{MIN_SCALE * width:.0f}px"'
        f' role="img" aria-label="{html.escape(label)}">{body}'
    )
