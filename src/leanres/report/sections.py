"""The parts of a run's page: each function takes what it shows and returns plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from leanres.metrics import mistakes
from leanres.metrics.accuracy import nll, wilson_interval, worst_errors
from leanres.metrics.calibration import (
    Bins,
    brier,
    fit_temperature,
    log_probs,
    reliability,
)
from leanres.report import figures
from leanres.report.pictures import data_uri
from leanres.report.record import Predictions, Record
from leanres.report.style import LEAST, to_svg
from leanres.runs.ledger import differences, shown
from leanres.training.recipe import Recipe

WRONG, UNSURE, SUSPECT, PAIRS, EXAMPLES = 32, 16, 16, 6, 6  # how many are shown

PHONE_PX = 320  # of text on a screen of 360


@dataclass(frozen=True)
class Chart:
    """A figure in the page: its heading, its SVG, and how to read it.

    One that is `wide` scrolls by itself on a telephone.
    """

    title: str
    svg: Markup
    caption: str
    wide: bool


@dataclass(frozen=True)
class Tile:
    """A small image in the page with its alternative text and the lines under it."""

    src: str
    alt: str
    lines: tuple[str, ...] = ()


def chart(title: str, figure: Figure, caption: str, alt: str = "") -> Chart:
    """The figure as a Chart; its alternative text is `alt`, else title and caption."""
    wide = LEAST * 72 * figure.get_figwidth() > PHONE_PX
    return Chart(title, Markup(to_svg(figure, alt or f"{title}. {caption}")), caption, wide)


def percent(share: float, digits: int = 2) -> str:
    """0.9206 -> "92.06 %", with a space that no line breaks at."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "34 min 29 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def training(record: Record) -> list[Chart]:
    """Loss, accuracy, lr, gradient norm and images/s over the epochs; those that are recorded."""
    charts = [_loss(record), _accuracy(record)]
    plain = (
        (
            "Learning rate",
            "lr",
            "lr",
            "The rate of the optimizer's first group at each epoch's end.",
        ),
        (
            "Gradient norm",
            "gradient_norm",
            "norm",
            "Length of all gradients together at each epoch's last step. A sudden rise warns of"
            " instability; one batch makes it noisy.",
        ),
        (
            "Speed",
            "images_per_s",
            "images/s",
            "Training images a second, evaluation and saving included. Steps come from a changing"
            " image size or from other programs on the machine.",
        ),
    )
    for title, key, unit, caption in plain:
        x, y = record.column(key)
        if x:
            charts.append(chart(title, figures.curves({title: (x, y)}, unit), caption))
    return charts


def _loss(record: Record) -> Chart:
    lines, marks = _measured(record, "loss", "nll")
    smooth = float(record.info["recipe"].get("label_smoothing", 0))
    caption = "Mean cross-entropy in nats: lower is better. Train is measured on augmented images"
    caption += f" with label smoothing {smooth:g}, so it may lie above the rest." if smooth else "."
    return chart("Loss", figures.curves(lines, "nats", marks=marks), caption)


def _accuracy(record: Record) -> Chart:
    lines, marks = _measured(record, "accuracy", "accuracy")
    caption = "Share of images recognised. "
    caption += "The diamond is the one final measurement. " if marks else ""
    caption += "A train line far above val says that the network learned its images by heart."
    return chart("Accuracy", figures.curves(lines, "", marks=marks, percent=True), caption)


def _measured(
    record: Record, column: str, final: str
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, tuple[float, float]]]:
    """Lines over the epochs, and the final measurement where no line ends in it already."""
    columns = {name: record.column(f"{name}_{column}") for name in ("train", "val")}
    lines = {name: points for name, points in columns.items() if points[0]}
    result = record.result or {}
    if record.split in lines or final not in result:
        return lines, {}
    return lines, {record.split: (float(record.epochs), result[final])}


def class_rows(found: Predictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: images, hits, accuracy with its interval, and how often it was predicted."""
    k = len(names)
    totals = torch.bincount(found.labels, minlength=k).tolist()
    hits = torch.bincount(found.labels[found.correct], minlength=k).tolist()
    predicted = torch.bincount(found.predicted, minlength=k).tolist()
    rows = []
    for name, n, right, said in zip(names, totals, hits, predicted, strict=True):
        low, high = wilson_interval(right, n) if n else (0.0, 1.0)
        share = right / n if n else None
        rows.append(
            {"name": name, "n": n, "hits": right, "accuracy": share, "low": low, "high": high}
            | {"predicted": said}
        )
    return rows


def confusion_table(found: Predictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per true class: its counts and the share of each predicted class in them."""
    k = len(names)
    table = torch.bincount(found.labels * k + found.predicted, minlength=k * k).reshape(k, k)
    rows = table.tolist()
    return [
        {"name": name, "cells": [(count, count / max(1, sum(row))) for count in row]}
        for name, row in zip(names, rows, strict=True)
    ]


def class_charts(found: Predictions, names: Sequence[str]) -> list[Chart]:
    """Accuracy per class, the confusion matrix, and how often each class was predicted."""
    rows = class_rows(found, names)
    confusion = torch.tensor(
        [[count for count, _ in row["cells"]] for row in confusion_table(found, names)]
    )
    return [
        chart(
            "Accuracy per class",
            figures.per_class(names, [r["hits"] for r in rows], [r["n"] for r in rows]),
            "Bars are 95 % Wilson intervals: classes whose bars overlap widely may well be equally"
            " hard.",
        ),
        chart(
            "Confusion matrix",
            figures.confusion_matrix(confusion.numpy(), names),
            "Each row holds the images of one true class, each column what they were called;"
            " darker is a larger share of the row. Off the diagonal are the mistakes.",
        ),
        chart(
            "Predictions per class",
            figures.prediction_counts(
                [r["predicted"] for r in rows], [r["n"] for r in rows], names
            ),
            "A bar beyond its mark: the class is named more often than it occurs.",
        ),
    ]


def pair_rows(
    found: Predictions, names: Sequence[str], images: Tensor | None
) -> list[dict[str, Any]]:
    """The most confused pairs of classes, with example images where those are at hand."""
    pairs = mistakes.confused_pairs(found.probs, found.labels, PAIRS)
    return [
        {
            "true": names[pair.true],
            "predicted": names[pair.predicted],
            "count": pair.count,
            "share": pair.share,
            "tiles": [
                replace(tile, lines=tile.lines[-1:])  # the classes stand above
                for tile in tiles(found, names, images, pair.images[:EXAMPLES])
            ],
        }
        for pair in pairs
    ]


def tiles(
    found: Predictions, names: Sequence[str], images: Tensor | None, indices: Tensor
) -> list[Tile]:
    """A tile per image: label, prediction, its probability; none where images are not at hand."""
    if images is None:
        return []
    return [_tile(found, names, images[index], index) for index in indices.tolist()]


def _tile(found: Predictions, names: Sequence[str], image: Tensor, index: int) -> Tile:
    true, said = names[int(found.labels[index])], names[int(found.predicted[index])]
    sure = percent(float(found.probs[index].max()), 1)
    alt = f"image {index}: labelled {true}, predicted {said} with {sure}"
    lines = (true, f"→\u00a0{said}", sure) if true != said else (true, sure)
    return Tile(data_uri(image), alt, lines)


def error_groups(
    found: Predictions, names: Sequence[str], images: Tensor | None
) -> list[dict[str, Any]]:
    """Three sets of images: the surest mistakes, the least sure hits, likely label errors."""
    wrong = worst_errors(found.probs, found.labels, WRONG)
    unsure = mistakes.least_sure_correct(found.probs, found.labels, UNSURE)
    suspects = mistakes.label_suspects(found.probs, found.labels, SUSPECT)
    total = int((~found.correct).sum())
    return [
        {
            "title": "Surest mistakes",
            "text": f"The {len(wrong)} surest of {total:,} misclassified images: label → prediction"
            " and the probability that the network gave it.",
            "tiles": tiles(found, names, images, wrong),
        },
        {
            "title": "Least sure hits",
            "text": "Recognised, but barely: the probability of the right class is lowest here.",
            "tiles": tiles(found, names, images, unsure),
        },
        {
            "title": "Likely label errors",
            "text": "Another class is predicted at least as surely as that class's own images are"
            " on average; ranked by the loss of the given label (after confident learning,"
            " arXiv:1911.00068). One network cannot tell a wrong label from a hard image: look"
            " before you believe it. No label was changed, and every figure here counts them as"
            " they are.",
            "tiles": tiles(found, names, images, suspects),
        },
    ]


def calibration(
    record: Record, found: Predictions, val: tuple[Tensor, Tensor] | None, why_not: str
) -> dict[str, Any]:
    """Charts and figures before and, where `val` (logits, labels) is given, after temperature.

    `why_not` says why there is no `val`.
    """
    logits = log_probs(found.probs)
    temperature = fit_temperature(*val) if val else None
    # One softmax for both, so that a temperature of 1 changes nothing.
    variants = {"as trained": logits.softmax(1)}
    if temperature is not None:
        variants["with temperature"] = (logits / temperature).softmax(1)
    rows = [_calibration_row(name, probs, found.labels) for name, probs in variants.items()]
    equal = [reliability(probs, found.labels) for probs in variants.values()]
    return {
        "rows": rows,
        "temperature": temperature,
        "all_right": val is not None and bool((val[0].argmax(1) == val[1]).all()),
        "num_val": len(val[1]) if val else 0,
        "why_not": why_not,
        "charts": [_reliability(record, equal), _confidences(found)],
    }


def _calibration_row(name: str, probs: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "ece": reliability(probs, labels).ece,
        "adaptive": reliability(probs, labels, adaptive=True).ece,
        "nll": nll(log_probs(probs), labels),
        "brier": brier(probs, labels),
    }


def _reliability(record: Record, bins: list[Bins]) -> Chart:
    caption = (
        f"{record.split.capitalize()} images in 15 bins of equal width; a point's size is its share"
        " of the images. Above the diagonal the network is too modest, below it too sure."
    )
    return chart("Reliability", figures.reliability_diagram(*bins), caption)


def _confidences(found: Predictions) -> Chart:
    figure = figures.confidence_histogram(found.probs.max(1).values, found.correct)
    caption = "Wrong predictions far to the right are the costly ones: sure, and mistaken."
    return chart("Confidence", figure, caption)


def recipe_rows(record: Record) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """(what differs from the default recipe, the whole recipe), as text."""
    recipe = record.info["recipe"]
    whole = [(key, shown(value)) for key, value in recipe.items()]
    return differences(Recipe().to_dict(), recipe), whole
