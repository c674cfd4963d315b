"""The sections of a run's page that look into the network: Grad-CAM, filters, its input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from leanres.data.arrays import CHANNELS
from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics.gradcam import (
    METHODS,
    explain,
    invalid_map_reasons,
    map_layers,
    usual_layers,
)
from leanres.metrics.mistakes import worst_errors
from leanres.report.pictures import data_uri, enlarged, mosaic, overlay
from leanres.report.record import Record
from leanres.report.sections import Tile, image_tiles
from leanres.runs.predictor import Predictor
from leanres.training.batch import batches, shrink
from leanres.training.recipe import Recipe, from_dict
from leanres.training.step_counts import StepCounts

NUM_EXPLAINED = 6  # images, each with two classes, two methods and (by default) two layers
NUM_OF_BATCH = 16  # images shown of a training batch


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
    chosen = {layer: sizes[layer] for layer in layers or usual_layers(sizes)}
    wrong = worst_errors(found.probs, found.labels, NUM_EXPLAINED)
    if not len(wrong) or not chosen:
        return None
    classes = {"predicted": found.predicted[wrong], "true": found.labels[wrong]}
    shown, columns, invalid = images[wrong], [], 0
    for layer, method, (of, labels) in product(chosen, METHODS, classes.items()):
        maps = explain(net.model, net.normalize(shown), layer, labels, method)
        alts = [
            f"{method} of {found.file(index)} at {layer} for the {of} class {record.classes[label]}"
            for index, label in zip(wrong.tolist(), labels.tolist(), strict=True)
        ]
        columns.append(_map_tiles(shown, maps, alts))
        invalid += sum(map(bool, invalid_map_reasons(maps)))
    return {
        "heads": [{"layer": layer, "method": method} for layer, method in product(chosen, METHODS)],
        "classes": list(classes),
        "layers": [{"name": name, "size": f"{h}x{w}"} for name, (h, w) in chosen.items()],
        "images": image_tiles(found, record.classes, images, wrong),
        "columns": columns,
        "invalid": invalid,
    }


def _map_tiles(images: Tensor, maps: Tensor, alts: Sequence[str]) -> list[Tile | str]:
    """Each image with its map drawn over it, or the reason why that map cannot be drawn."""
    return [
        reason or Tile(data_uri(overlay(image, heat)), f"{alt}: {_strongest(heat)}")
        for image, heat, alt, reason in zip(
            images, maps, alts, invalid_map_reasons(maps), strict=True
        )
    ]


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

    Filters are None without weights, batches are empty without the dataset, split as in the run.
    """
    filters = None
    weights = None if net is None else first_filters(net)
    if weights is not None:
        n, _, h, w = weights.shape
        filters = {"src": enlarged(mosaic(weights)), "n": n, "size": f"{h}x{w}"}
    return {"filters": filters, "batches": [] if dataset is None else _batches(record, dataset)}


def first_filters(net: Predictor) -> Tensor | None:
    """The weights (N, C, k, k) of the first convolution; None if its input is no image."""
    convolutions = (m for m in net.model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return (
        first.weight.detach() if first is not None and first.weight.shape[1] in CHANNELS else None
    )


def _batches(record: Record, dataset: Dataset) -> list[dict[str, Any]]:
    try:
        recipe = from_dict(record.info["recipe"])
    except UserError:  # a setting or augmentation that is not registered in this process
        return []
    counts = StepCounts(recipe, len(dataset.train))
    shown = []
    for epoch in sorted({1, record.last_epoch}):
        step = (epoch - 1) * counts.steps_per_epoch
        images = images_of_step(recipe, dataset.train, step, NUM_OF_BATCH)
        alt = f"of the first batch of epoch {epoch}"
        tiles = [Tile(data_uri(x), f"training image {i} {alt}") for i, x in enumerate(images, 1)]
        shown.append({"epoch": epoch, "side": images.shape[-1], "tiles": tiles})
    return shown


def images_of_step(recipe: Recipe, train: Split, step: int, count: int) -> Tensor:
    """The first `count` images of optimizer step `step`, augmented and resized as in training.

    (count, C, H, W) uint8, before normalisation.
    """
    counts = StepCounts(recipe, len(train))
    images, _ = next(batches(train, counts, step))
    small = shrink(images[:count].float(), counts.scale(step))
    return small.round().clamp(0, 255).to(torch.uint8)
