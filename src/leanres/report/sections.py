"""The sections of a run's page: functions from records and predictions to plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from leanres.metrics import mistakes
from leanres.metrics.accuracy import confusion, nll, wilson_interval, worst_errors
from leanres.metrics.calibration import (
    Bins,
    brier,
    fit_temperature,
    log_probs,
    reliability,
)
from leanres.metrics.reported import percent
from leanres.report import figures
from leanres.report.pictures import data_uri
from leanres.report.record import Predictions, Record
from leanres.report.style import MIN_SCALE, to_svg

NUM_ERRORS, NUM_CORRECT, NUM_SUSPECTS = 32, 16, 16  # images shown
NUM_PAIRS, NUM_EXAMPLES = 6, 6  # confused pairs, images of each
PHONE_PX = 320  # width of the text on a screen of 360 px


@dataclass(frozen=True)
class Chart:
    """A figure of the page: its heading, its SVG, and how to read it.

    A `wide` one gets a scroll bar of its own on a phone.
    """

    title: str
    svg: Markup
    caption: str
    wide: bool


@dataclass(frozen=True)
class Tile:
    """A thumbnail with its alternative text and the lines below it."""

    src: str
    alt: str
    lines: tuple[str, ...] = ()


def make_chart(title: str, figure: Figure, caption: str) -> Chart:
    """The figure as a Chart; title and caption are its alternative text."""
    wide = MIN_SCALE * 72 * figure.get_figwidth() > PHONE_PX
    return Chart(title, Markup(to_svg(figure, f"{title}. {caption}")), caption, wide)


def duration(seconds: float) -> str:
    """Seconds as text: "45 s", "34 min 29 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def training(record: Record) -> list[Chart]:
    """Loss, accuracy, lr, gradient norm and images/s over the epochs, as far as recorded."""
    charts = [_loss_chart(record), _accuracy_chart(record)]
    further = (
        (
            "Learning rate",
            "lr",
            "lr",
            "The rate of the optimizer's first parameter group at the end of each epoch.",
        ),
        (
            "Gradient norm",
            "gradient_norm",
            "norm",
            "L2 norm of all gradients at the last step of each epoch. A sudden rise is a sign of"
            " instability. It is noisy because it is that of a single batch.",
        ),
        (
            "Speed",
            "images_per_s",
            "images/s",
            "Training images per second, including evaluation and saving. A changing image size or"
            " other programs on the machine make it jump.",
        ),
    )
    for title, key, unit, caption in further:
        x, y = record.column(key)
        if x:
            charts.append(make_chart(title, figures.curves({title: (x, y)}, unit), caption))
    return charts


def _loss_chart(record: Record) -> Chart:
    lines, marks = _lines_and_marks(record, "loss", "nll")
    smoothing = record.info["recipe"]["label_smoothing"]
    caption = "Mean cross-entropy in nats; lower is better. Train is measured on augmented images"
    caption += f" with label smoothing {smoothing:g}, so it can be higher." if smoothing else "."
    return make_chart("Loss", figures.curves(lines, "nats", marks=marks), caption)


def _accuracy_chart(record: Record) -> Chart:
    lines, marks = _lines_and_marks(record, "accuracy", "accuracy")
    caption = "Share of correct predictions. "
    caption += "The diamond is the final evaluation. " if marks else ""
    caption += "If train is far above val, the network is overfitting."
    return make_chart("Accuracy", figures.curves(lines, "", marks=marks, percent=True), caption)


def _lines_and_marks(
    record: Record, column: str, final: str
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, tuple[float, float]]]:
    """Lines over the epochs, and the final evaluation if no line ends in it already."""
    columns = {name: record.column(f"{name}_{column}") for name in ("train", "val")}
    lines = {name: points for name, points in columns.items() if points[0]}
    result = record.result or {}
    if record.split in lines or final not in result:
        return lines, {}
    return lines, {record.split: (float(record.epochs), result[final])}


def class_rows(found: Predictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: images, correct ones, accuracy with its interval, and number of predictions."""
    table = confusion(found.probs, found.labels)
    columns = (table.sum(1).tolist(), table.diagonal().tolist(), table.sum(0).tolist())
    rows = []
    for name, n, correct, predicted in zip(names, *columns, strict=True):
        low, high = wilson_interval(correct, n) if n else (0.0, 1.0)
        share = correct / n if n else None
        row = {"name": name, "n": n, "correct": correct, "predicted": predicted}
        rows.append(row | {"accuracy": share, "low": low, "high": high})
    return rows


def confusion_table(found: Predictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per true class: the number of each predicted class, and its share of the true class."""
    rows = confusion(found.probs, found.labels).tolist()
    return [
        {"name": name, "cells": [(count, count / max(1, sum(row))) for count in row]}
        for name, row in zip(names, rows, strict=True)
    ]


def class_charts(found: Predictions, names: Sequence[str]) -> list[Chart]:
    """Accuracy per class, the confusion matrix, and how often each class was predicted."""
    rows = class_rows(found, names)
    n, correct, predicted = ([row[key] for row in rows] for key in ("n", "correct", "predicted"))
    table = confusion(found.probs, found.labels).numpy()
    return [
        make_chart(
            "Accuracy per class",
            figures.per_class(names, correct, n),
            "Bars are 95 % Wilson intervals. Classes whose bars overlap may be equally hard.",
        ),
        make_chart(
            "Confusion matrix",
            figures.confusion_matrix(table, names),
            "Rows are true classes, columns are predicted classes; darker is a larger share of the"
            " row. Errors are off the diagonal.",
        ),
        make_chart(
            "Predictions per class",
            figures.prediction_counts(predicted, n, names),
            "A bar that ends beyond its mark belongs to a class that is predicted too often.",
        ),
    ]


def pair_rows(
    found: Predictions, names: Sequence[str], images: Tensor | None
) -> list[dict[str, Any]]:
    """The most confused pairs of classes, with example images if those are given."""
    pairs = mistakes.confused_pairs(found.probs, found.labels, NUM_PAIRS)
    return [
        {
            "true": names[pair.true],
            "predicted": names[pair.predicted],
            "count": pair.count,
            "share": pair.share,
            "tiles": [
                replace(tile, lines=tile.lines[-1:])  # the heading names the classes
                for tile in image_tiles(found, names, images, pair.images[:NUM_EXAMPLES])
            ],
        }
        for pair in pairs
    ]


def image_tiles(
    found: Predictions, names: Sequence[str], images: Tensor | None, indices: Tensor
) -> list[Tile]:
    """A tile per image with label, prediction and its probability; none without images."""
    if images is None:
        return []
    return [_image_tile(found, names, images[index], index) for index in indices.tolist()]


def _image_tile(found: Predictions, names: Sequence[str], image: Tensor, index: int) -> Tile:
    true, predicted = names[int(found.labels[index])], names[int(found.predicted[index])]
    confidence = percent(float(found.probs[index].max()), 1)
    alt = f"image {index}: labelled {true}, predicted {predicted} with {confidence}"
    wrong = (f"→\u00a0{predicted}",) if true != predicted else ()
    lines = (true, *wrong, confidence)
    return Tile(data_uri(image), alt, lines)


def error_groups(
    found: Predictions, names: Sequence[str], images: Tensor | None
) -> list[dict[str, Any]]:
    """The most confident errors, the least confident correct images, likely label errors."""
    wrong = worst_errors(found.probs, found.labels, NUM_ERRORS)
    uncertain = mistakes.least_confident_correct(found.probs, found.labels, NUM_CORRECT)
    suspects = mistakes.label_suspects(found.probs, found.labels, NUM_SUSPECTS)
    total = int((~found.correct).sum())
    return [
        {
            "title": "Most confident errors",
            "text": f"{len(wrong)} of {total:,} misclassified images: label → prediction, and the"
            " probability that the network gave it.",
            "tiles": image_tiles(found, names, images, wrong),
        },
        {
            "title": "Least confident correct predictions",
            "text": "Correct, but only just: the probability of the true class is lowest here.",
            "tiles": image_tiles(found, names, images, uncertain),
        },
        {
            "title": "Likely label errors",
            "text": "Another class is predicted at least as confidently as the images of that class"
            " are on average; ranked by the loss of the given label (confident learning,"
            " arXiv:1911.00068). The network cannot tell a wrong label from a hard image, so check"
            " each one yourself. No label was changed: all figures on this page use the labels as"
            " they are.",
            "tiles": image_tiles(found, names, images, suspects),
        },
    ]


def calibration(
    record: Record, found: Predictions, val: tuple[Tensor, Tensor] | None, why_not: str
) -> dict[str, Any]:
    """Calibration before and, if `val` (logits, labels) is given, after temperature scaling.

    `why_not` says why there is no `val`.
    """
    logits = log_probs(found.probs)
    temperature = fit_temperature(*val) if val else None
    # The same softmax for both, so that a temperature of 1 changes nothing.
    variants = {"as trained": logits.softmax(1)}
    if temperature is not None:
        variants["with temperature"] = (logits / temperature).softmax(1)
    rows = [_calibration_row(name, probs, found.labels) for name, probs in variants.items()]
    equal = [reliability(probs, found.labels) for probs in variants.values()]
    return {
        "rows": rows,
        "temperature": temperature,
        "all_correct": val is not None and bool((val[0].argmax(1) == val[1]).all()),
        "num_val": len(val[1]) if val else 0,
        "why_not": why_not,
        "charts": [_reliability_chart(record, equal), _confidence_chart(found)],
    }


def _calibration_row(name: str, probs: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "ece": reliability(probs, labels).ece,
        "adaptive": reliability(probs, labels, adaptive=True).ece,
        "nll": nll(log_probs(probs), labels),
        "brier": brier(probs, labels),
    }


def _reliability_chart(record: Record, bins: list[Bins]) -> Chart:
    caption = (
        f"{record.split.capitalize()} images in 15 bins of equal width; a larger point has more"
        " images. The network is underconfident above the diagonal and overconfident below it."
    )
    return make_chart("Reliability", figures.reliability_diagram(*bins), caption)


def _confidence_chart(found: Predictions) -> Chart:
    figure = figures.confidence_histogram(found.probs.max(1).values, found.correct)
    caption = "Wrong predictions on the far right are the costly ones: confident errors."
    return make_chart("Confidence", figure, caption)
