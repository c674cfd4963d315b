"""What the network looked at, what it was shown, and its first filters, as tiles for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.accuracy import worst_errors
from leanres.metrics.gradcam import METHODS, invalid_map_reasons, usual_layers
from leanres.registry import unknown
from leanres.report.network import (
    as_trained,
    explain,
    first_filters,
    images_of_step,
    map_layers,
    read_recipe,
)
from leanres.report.pictures import data_uri, enlarged, mosaic, overlay
from leanres.report.record import Record
from leanres.report.sections import Tile, percent
from leanres.runs.predictor import Predictor
from leanres.training.recipe import StepCounts

EXPLAINED = 6  # images, each with two classes, two methods and (by default) two layers
SHOWN = 16  # of a training batch


@dataclass(frozen=True)
class Looked:
    """One image with its maps: a tile per layer, method and class; a fault in place of a tile."""

    image: Tile
    cells: tuple[Tile | str, ...]


def gradcam_section(
    record: Record, net: Predictor | None, images: Tensor | None, layers: Sequence[str]
) -> dict[str, Any] | None:
    """Grad-CAM and Grad-CAM++ on the surest mistakes, for the predicted and for the true class.

    None where weights or images are not at hand. UserError for an unknown layer.
    """
    found = record.predictions
    if net is None or images is None or found is None:
        return None
    sizes = map_layers(net, images[0])
    for layer in layers:
        if layer not in sizes:
            raise UserError(unknown("layer with maps", layer, list(sizes)))
    chosen = list(layers) or usual_layers(sizes)
    wrong = worst_errors(found.probs, found.labels, EXPLAINED)
    if not len(wrong) or not chosen:
        return None
    classes = {"predicted": found.predicted[wrong], "true": found.labels[wrong]}
    columns = [(la, m, c) for la in chosen for m in METHODS for c in classes]
    maps = [explain(net, images[wrong], la, classes[c], m) for la, m, c in columns]
    return {
        "heads": [{"layer": la, "method": m} for la in chosen for m in METHODS],
        "classes": list(classes),
        "layers": [{"name": name, "size": "x".join(map(str, sizes[name]))} for name in chosen],
        "rows": [
            _looked(record, images[index], index, columns, [m[place] for m in maps])
            for place, index in enumerate(wrong.tolist())
        ],
        "faults": sum(bool(fault) for m in maps for fault in invalid_map_reasons(m)),
    }


def _looked(
    record: Record,
    image: Tensor,
    index: int,
    columns: list[tuple[str, str, str]],
    maps: list[Tensor],
) -> Looked:
    found, names = record.predictions, record.classes
    assert found is not None
    said = {
        "predicted": names[int(found.predicted[index])],
        "true": names[int(found.labels[index])],
    }
    sure = percent(float(found.probs[index].max()), 1)
    alt = f"image {index}: labelled {said['true']}, predicted {said['predicted']} with {sure}"
    base = Tile(data_uri(image), alt, (said["true"], f"→\u00a0{said['predicted']}", sure))
    cells = []
    for (layer, method, of), heat in zip(columns, maps, strict=True):
        (fault,) = invalid_map_reasons(heat[None])
        where = f"{method} of image {index} at {layer} for the {of} class {said[of]}"
        where += f": {_place(heat)}" if not fault else ""
        cells.append(fault or Tile(data_uri(overlay(image, heat)), where, ()))
    return Looked(base, tuple(cells))


def _place(heat: Tensor) -> str:
    """Where a map is strongest, in words: for those who do not see it."""
    h, w = heat.shape
    y, x = divmod(int(heat.argmax()), w)
    row = ("top", "middle", "bottom")[min(2, 3 * y // h)]
    column = ("left", "centre", "right")[min(2, 3 * x // w)]
    return f"strongest at {row} {column}"


def inside(record: Record, net: Predictor | None, dataset: Dataset | None) -> dict[str, Any]:
    """First-layer filters, and training images as the network saw them in its first and last epoch.

    What is not at hand is None or empty.
    """
    weights = None if net is None else first_filters(net)
    return {
        "filters": None if weights is None else _filters(weights),
        "batches": [] if dataset is None else _batches(record, dataset),
    }


def _filters(weights: Tensor) -> dict[str, Any]:
    n, _, h, w = weights.shape
    return {"src": enlarged(mosaic(weights)), "n": n, "size": f"{h}x{w}"}


def _batches(record: Record, dataset: Dataset) -> list[dict[str, Any]]:
    try:
        recipe = read_recipe(record)
        train = as_trained(record, dataset).train
        counts = StepCounts(recipe, len(train))
        steps = {1: 0, recipe.epochs: counts.total - counts.steps_per_epoch}
        return [
            _batch(epoch, images_of_step(recipe, train, step, SHOWN))
            for epoch, step in steps.items()
        ]
    except UserError:  # a recipe of another version, with settings that this one does not know
        return []


def _batch(epoch: int, images: Tensor) -> dict[str, Any]:
    side = images.shape[-1]
    return {
        "epoch": epoch,
        "side": side,
        "tiles": [
            Tile(data_uri(image), f"training image {place} of the first batch of epoch {epoch}")
            for place, image in enumerate(images, 1)
        ],
    }
