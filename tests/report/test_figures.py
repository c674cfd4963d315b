"""Every figure is a function of arrays, and as SVG it is small, themed and unambiguous."""

from __future__ import annotations

import inspect
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib import get_backend, rcParams
from matplotlib.figure import Figure

from leanres.metrics.calibration import reliability
from leanres.report import figures, pictures, style

rng = np.random.default_rng(0)
EPOCHS = np.arange(1, 11)
NAMES = ["plane", "$5 & <b>", "猫", "a rather long name of a class"]
PROBS = torch.tensor(rng.dirichlet(np.ones(4), 300))
LABELS = torch.tensor(rng.integers(0, 4, 300))
IMAGES = torch.tensor(rng.integers(0, 256, (5, 3, 16, 16), np.uint8))
FIGURES = {
    "curves": lambda: figures.curves(
        {"train": (EPOCHS, 1 / EPOCHS), "val": (EPOCHS, 1.2 / EPOCHS)},
        "nats",
        marks={"test": (10, 0.15)},
    ),
    "per_class": lambda: figures.per_class(NAMES, [90, 0, 50, 100], [100, 0, 100, 100]),
    "confusion_matrix": lambda: figures.confusion_matrix(rng.integers(0, 90, (4, 4)), NAMES),
    "prediction_counts": lambda: figures.prediction_counts([9, 1, 2, 3], [4, 4, 4, 3], NAMES),
    "confidence_histogram": lambda: figures.confidence_histogram(
        rng.random(99), rng.random(99) > 0.3
    ),
    "reliability_diagram": lambda: figures.reliability_diagram(
        reliability(PROBS, LABELS), reliability(PROBS.sqrt() / PROBS.sqrt().sum(1, True), LABELS)
    ),
    "pareto": lambda: figures.pareto(
        [270_000, 4_900_000, 11_000_000],
        [0.91, 0.95, 0.94],
        [(0.9, 0.92), (0.94, 0.96), (0.93, 0.95)],
        ["small", "right", "large"],
        5_000_000,
    ),
    "image_grid": lambda: pictures.image_grid(IMAGES, ["a\n→ b"] * 5, columns=3),
    "heat_maps": lambda: pictures.heat_maps(IMAGES, torch.eye(3).expand(5, 3, 3)),
    "filters": lambda: pictures.filters(torch.randn(20, 3, 3, 3)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_becomes_svg_that_follows_the_page(name):
    before = dict(rcParams)
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    svg = style.to_svg(figure, 'what "it" shows & <how>')
    assert dict(rcParams) == before
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'what "it" shows & <how>'
    assert not root.get("width")  # the page decides; the viewBox keeps the aspect ratio
    assert "@font-face" not in svg
    assert "DejaVu" not in svg
    inline = re.sub(r"data:image/png;base64,[^\"']*", "", svg)
    assert len(inline) < 60_000
    assert not re.findall(r"#[0-9a-f]{6}\b", inline), "every colour is one of the page's"


def test_every_figure_is_tested_here_and_has_a_docstring():
    found = {
        name: function
        for module in (figures, pictures)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if hasattr(function, "__wrapped__")  # `styled`
    }
    assert set(found) == set(FIGURES)
    assert all(function.__doc__ for function in found.values())


def test_names_of_classes_are_text_without_markup():
    svg = style.to_svg(FIGURES["per_class"](), "x")
    texts = [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"plane", "猫", "a rather long name of a class"} <= set(texts)
    assert "$5 & <b>" not in texts  # this class has no images
    assert "$5 & <b>" in "".join(
        e.text or "" for e in ET.fromstring(style.to_svg(FIGURES["confusion_matrix"](), "x")).iter()
    )


def test_ids_of_two_figures_differ_and_references_are_kept():
    svgs = [style.to_svg(FIGURES[name](), name) for name in FIGURES]
    for svg in svgs:
        ids = re.findall(r' id="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) == set(ids)
    for a, b in combinations(svgs, 2):
        assert not set(re.findall(r' id="([^"]+)"', a)) & set(re.findall(r' id="([^"]+)"', b))


def test_the_same_figure_gives_the_same_bytes():
    assert style.to_svg(FIGURES["pareto"](), "x") == style.to_svg(FIGURES["pareto"](), "x")


def test_a_figure_is_not_registered_with_pyplot_and_no_backend_is_chosen():
    from matplotlib import pyplot

    before = get_backend(auto_select=False)
    FIGURES["curves"]()
    assert not pyplot.get_fignums()
    assert get_backend(auto_select=False) == before


def test_inputs_are_left_unchanged():
    counts = np.arange(9).reshape(3, 3)
    kept = counts.copy()
    figures.confusion_matrix(counts, ["a", "b", "c"])
    assert (counts == kept).all()


@pytest.mark.parametrize("k", [2, 40, 100])
def test_few_and_many_classes_fit(k):
    names = [f"class {i}" for i in range(k)]
    counts = rng.integers(0, 9, (k, k))
    totals = counts.sum(1).tolist()
    for figure in (
        figures.confusion_matrix(counts, names),
        figures.per_class(names, counts.diagonal().tolist(), totals),
        figures.prediction_counts(counts.sum(0).tolist(), totals, names),
    ):
        assert len(style.to_svg(figure, "x")) < 80_000
        assert max(figure.get_size_inches()) * 72 < 800


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two #rrggbb colours."""

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_in_both_schemes(scheme):
    from importlib.resources import files

    css = (files("leanres.report") / "templates" / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    assert set(style.NAMES.values()) <= set(colors)
    if scheme == "light":
        assert {name: colors[name] for name in style.NAMES.values()} == {
            name: color for color, name in style.NAMES.items()
        }
    for name in ("ink", "faint", "blue"):  # text and links
        assert contrast(colors[name], colors["paper"]) >= 4.5
        assert contrast(colors[name], colors["raised"]) >= 4.5
    for name in ("blue", "orange", "green", "purple", "sky"):  # lines and points
        assert contrast(colors[name], colors["paper"]) >= 3
