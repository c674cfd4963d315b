"""The sections of a run's page: functions from records and predictions to plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from leanres.errors import shortened
from leanres.metrics import mistakes
from leanres.metrics.calibration import brier, fit_temperature, log_probs, reliability
from leanres.metrics.classification import class_scores, nll, percent, wilson_interval
from leanres.report import figures
from leanres.report.pictures import data_uri
from leanres.report.record import Record
from leanres.report.style import MIN_SCALE, to_svg
from leanres.runs.predictions import Predictions

NUM_ERRORS, NUM_CORRECT, NUM_SUSPECTS = 32, 16, 16  # images shown
NUM_PAIRS, NUM_EXAMPLES = 6, 6  # confused pairs, images of each
MAX_NAME = 24  # letters of a class name below an image
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
    """An image with its alternative text, its name, and the lines below it."""

    src: str
    alt: str
    lines: tuple[str, ...] = ()
    file: str = ""


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


# Further curves of the training: title, column, unit, caption.
FURTHER_CURVES = (
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


def training(record: Record) -> list[Chart]:
    """Loss, accuracy, lr, gradient norm and images/s over the epochs, as far as recorded."""
    smoothing = record.info["recipe"]["label_smoothing"]
    caption = "Mean cross-entropy in nats; lower is better. Train is measured on augmented images"
    caption += f" with label smoothing {smoothing:g}, so it can be higher." if smoothing else "."
    lines, marks = _lines_and_marks(record, "loss", "nll")
    charts = [make_chart("Loss", figures.curves(lines, "nats", marks=marks), caption)]
    lines, marks = _lines_and_marks(record, "accuracy", "accuracy")
    caption = "Share of correct predictions. "
    caption += "The diamond is the final evaluation. " if marks else ""
    caption += "If train is far above val, the network is overfitting."
    figure = figures.curves(lines, "", marks=marks, percent=True)
    charts.append(make_chart("Accuracy", figure, caption))
    for title, key, unit, caption in FURTHER_CURVES:
        points = record.column(key)
        if points[0]:
            charts.append(make_chart(title, figures.curves({title: points}, unit), caption))
    return charts


def _lines_and_marks(
    record: Record, column: str, final: str
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, tuple[float, float]]]:
    """Lines over the epochs, and the final evaluation if no line ends in it already."""
    columns = {name: record.column(f"{name}_{column}") for name in ("train", "val")}
    lines = {name: points for name, points in columns.items() if points[0]}
    result = record.result or {}
    if record.split in lines or final not in result:
        return lines, {}
    epoch = float(result.get("epoch", record.epochs))
    return lines, {record.split: (epoch, result[final])}


def class_rows(counts: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class of a confusion matrix (K, K): images, accuracy with its interval, predictions.

    Precision and F1 are None where they are not defined.
    """
    scores = class_scores(counts)
    columns = (t.tolist() for t in (counts.sum(1), counts.diagonal(), counts.sum(0)))
    defined = ([None if s != s else s for s in t.tolist()] for t in (scores.precision, scores.f1))
    rows = []
    for name, n, correct, predicted, precision, f1 in zip(names, *columns, *defined, strict=True):
        low, high = wilson_interval(correct, n) if n else (0.0, 1.0)
        share = correct / n if n else None
        row = {"name": name, "n": n, "correct": correct, "predicted": predicted}
        row |= {"precision": precision, "f1": f1}
        rows.append(row | {"accuracy": share, "low": low, "high": high})
    return rows


def class_charts(rows: Sequence[dict[str, Any]], counts: Tensor) -> list[Chart]:
    """Accuracy per class, the confusion matrix, and how often each class was predicted."""
    columns = ([row[key] for row in rows] for key in ("name", "n", "correct", "predicted"))
    names, n, correct, predicted = columns
    return [
        make_chart(
            "Accuracy per class",
            figures.per_class(names, correct, n),
            "Bars are 95 % Wilson intervals. Classes whose bars overlap may be equally hard.",
        ),
        make_chart(
            "Confusion matrix",
            figures.confusion_matrix(counts, names),
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
        for pair in mistakes.confused_pairs(found.probs, found.labels, NUM_PAIRS)
    ]


def image_tiles(
    found: Predictions, names: Sequence[str], images: Tensor | None, indices: Tensor
) -> list[Tile]:
    """A tile per image with label, prediction and its probability; none without images."""
    if images is None:
        return []
    tiles = []
    for index in indices.tolist():
        true, predicted = (names[int(of[index])] for of in (found.labels, found.predicted))
        confidence = percent(float(found.probs[index].max()), 1)
        file = found.file(index)
        alt = f"{file}: labelled {true}, predicted {predicted} with {confidence}"
        short, other = shortened(true, MAX_NAME), shortened(predicted, MAX_NAME)
        lines = (short, *([f"→\u00a0{other}"] if true != predicted else []), confidence)
        tiles.append(Tile(data_uri(images[index]), alt, lines, file))
    return tiles


def error_tiles(
    found: Predictions, names: Sequence[str], images: Tensor | None
) -> dict[str, list[Tile]]:
    """The most confident errors, the least confident correct images, likely label errors."""
    probs, labels = found.probs, found.labels
    chosen = {
        "wrong": mistakes.worst_errors(probs, labels, NUM_ERRORS),
        "uncertain": mistakes.least_confident_correct(probs, labels, NUM_CORRECT),
        "suspects": mistakes.label_suspects(probs, labels, NUM_SUSPECTS),
    }
    return {key: image_tiles(found, names, images, indices) for key, indices in chosen.items()}


def calibration(
    record: Record, found: Predictions, val: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """Calibration before and, if `val` (logits, labels) is given, after temperature scaling."""
    logits = log_probs(found.probs)
    temperature = fit_temperature(*val) if val else None
    # The same softmax for both, so that a temperature of 1 changes nothing.
    variants = {"as trained": logits.softmax(1)}
    if temperature is not None:
        variants["with temperature"] = (logits / temperature).softmax(1)
    bins = [reliability(probs, found.labels) for probs in variants.values()]
    return {
        "rows": [_calibration_row(*pair, found.labels) for pair in variants.items()],
        "temperature": temperature,
        "all_correct": val is not None and bool((val[0].argmax(1) == val[1]).all()),
        "num_val": len(val[1]) if val else 0,
        "charts": [
            make_chart(
                "Reliability",
                figures.reliability_diagram(*bins),
                f"{record.split.capitalize()} images in 15 bins of equal width; a larger point has"
                " more images. The network is underconfident above the diagonal and overconfident"
                " below it.",
            ),
            make_chart(
                "Confidence",
                figures.confidence_histogram(found.probs.max(1).values, found.correct),
                "Wrong predictions on the far right are the costly ones: confident errors.",
            ),
        ],
    }


def _calibration_row(name: str, probs: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "ece": reliability(probs, labels).ece,
        "adaptive": reliability(probs, labels, adaptive=True).ece,
        "nll": nll(log_probs(probs), labels),
        "brier": brier(probs, labels),
    }
