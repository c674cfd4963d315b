"""The sections of a run's page that need its weights or images: Grad-CAM, filters, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.accuracy import worst_errors
from leanres.metrics.gradcam import (
    METHODS,
    explain,
    invalid_map_reasons,
    map_layers,
    usual_layers,
)
from leanres.registry import unknown
from leanres.report.network import as_trained, first_filters, images_of_step
from leanres.report.pictures import data_uri, enlarged, mosaic, overlay
from leanres.report.record import Record
from leanres.report.sections import Tile, image_tiles
from leanres.runs.predictor import Predictor
from leanres.training.recipe import StepCounts, from_dict

NUM_EXPLAINED = 6  # images, each with two classes, two methods and (by default) two layers
NUM_OF_BATCH = 16  # images shown of a training batch


@dataclass(frozen=True)
class ExplainedImage:
    """An image and one cell per layer, method and class: its map, or why that cannot be drawn."""

    image: Tile
    cells: tuple[Tile | str, ...]


def gradcam_section(
    record: Record, net: Predictor | None, images: Tensor | None, layers: Sequence[str]
) -> dict[str, Any] | None:
    """Grad-CAM and Grad-CAM++ of the most confident errors, for the predicted and the true class.

    None without weights, images or errors. UserError for an unknown layer.
    """
    found = record.predictions
    if net is None or images is None or found is None:
        return None
    sizes = map_layers(net.model, net.normalize(images[:1]))
    for layer in layers:
        if layer not in sizes:
            raise UserError(unknown("layer with maps", layer, list(sizes)))
    chosen = list(layers) or usual_layers(sizes)
    wrong = worst_errors(found.probs, found.labels, NUM_EXPLAINED)
    if not len(wrong) or not chosen:
        return None
    classes = {"predicted": found.predicted[wrong], "true": found.labels[wrong]}
    inputs = net.normalize(images[wrong])
    columns = {
        (layer, method, of): explain(net.model, inputs, layer, classes[of], method)
        for layer in chosen
        for method in METHODS
        for of in classes
    }
    tiles = image_tiles(found, record.classes, images, wrong)
    return {
        "heads": [{"layer": layer, "method": method} for layer in chosen for method in METHODS],
        "classes": list(classes),
        "layers": [{"name": name, "size": "x".join(map(str, sizes[name]))} for name in chosen],
        "rows": [
            ExplainedImage(tile, tuple(_cells(record, images, index, columns, row)))
            for row, (index, tile) in enumerate(zip(wrong.tolist(), tiles, strict=True))
        ],
        "invalid": sum(bool(why) for maps in columns.values() for why in invalid_map_reasons(maps)),
    }


def _cells(
    record: Record,
    images: Tensor,
    index: int,
    columns: dict[tuple[str, str, str], Tensor],
    row: int,
) -> list[Tile | str]:
    """A tile per column for image `index`, whose map is at `row`; the reason in place of no map."""
    found = record.predictions
    assert found is not None
    labels = {"predicted": int(found.predicted[index]), "true": int(found.labels[index])}
    cells: list[Tile | str] = []
    for (layer, method, of), maps in columns.items():
        (reason,) = invalid_map_reasons(maps[row, None])
        if reason:
            cells.append(reason)
            continue
        alt = f"{method} of image {index} at {layer} for the {of} class"
        alt += f" {record.classes[labels[of]]}: {_strongest(maps[row])}"
        cells.append(Tile(data_uri(overlay(images[index], maps[row])), alt))
    return cells


def _strongest(heat: Tensor) -> str:
    """Where a map (h, w) is strongest, in words: the image's alternative text."""
    h, w = heat.shape
    y, x = divmod(int(heat.argmax()), w)
    row = ("top", "middle", "bottom")[min(2, 3 * y // h)]
    column = ("left", "centre", "right")[min(2, 3 * x // w)]
    return f"strongest at {row} {column}"


def filters_and_batches(
    record: Record, net: Predictor | None, dataset: Dataset | None
) -> dict[str, Any]:
    """First-layer filters, and training images as the network got them in the first and last epoch.

    Filters are None without weights, batches are empty without the dataset.
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
        recipe = from_dict(record.info["recipe"])
    except UserError:  # a setting or augmentation that is not registered in this process
        return []
    train = as_trained(record, dataset).train
    counts = StepCounts(recipe, len(train))
    steps = {1: 0, recipe.epochs: counts.total - counts.steps_per_epoch}
    return [
        _batch(epoch, images_of_step(recipe, train, step, NUM_OF_BATCH))
        for epoch, step in steps.items()
    ]


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
