"""What the report asks of the trained network and its images: logits, maps, filters, a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics import gradcam
from leanres.report.record import Predictions, Record
from leanres.runs.layout import PREDICTIONS
from leanres.runs.predictor import Predictor, load_predictor
from leanres.runs.weights import WEIGHTS
from leanres.training.batch import batches, shrink
from leanres.training.recipe import Recipe, StepCounts, from_dict


def map_layers(net: Predictor, image: Tensor) -> dict[str, tuple[int, int]]:
    """Layers with maps and their sizes, for images like this one (3, H, W) uint8."""
    return gradcam.map_layers(net.model, net.normalize(image[None]))


def explain(net: Predictor, images: Tensor, layer: str, classes: Tensor, method: str) -> Tensor:
    """`gradcam.explain` of uint8 images (N, 3, H, W): maps (N, h, w)."""
    return gradcam.explain(net.model, net.normalize(images), layer, classes, method)


def first_filters(net: Predictor) -> Tensor | None:
    """The weights (N, 3, k, k) of the first convolution; None where it reads no colours."""
    convolutions = (m for m in net.model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return first.weight.detach() if first is not None and first.weight.shape[1] == 3 else None


def load_network(record: Record) -> Predictor:
    """The network of the run's weights file, on the CPU. UserError where there is none."""
    return load_predictor(record.folder, "cpu", "float32")


def same_data(record: Record, dataset: Dataset) -> bool:
    """Whether the splits that the run knows have the same images, labels and class names."""
    then = record.info["data"]["fingerprints"]
    now = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    return all(
        (split.fingerprint if split else None) == then.get(name) for name, split in now.items()
    )


def as_trained(record: Record, dataset: Dataset) -> Dataset:
    """The data with what the run held out of train as val."""
    return dataset.with_val(int(record.info["recipe"].get("val", 0)))


def judged_split(record: Record, dataset: Dataset) -> Split:
    """The images of the run's predictions."""
    split = dataset.test if record.split == "test" else as_trained(record, dataset).val
    if split is None:
        raise UserError(f"{dataset.name} has no {record.split} images: give the run's data")
    return split


def with_predictions(record: Record, dataset: Dataset | None) -> Record:
    """The record with predictions: its own, else what the weights say of the data at hand.

    UserError where neither will do; it says what is missing. Unchanged without a result.
    """
    if record.predictions is not None or record.result is None:
        return record
    missing = f"{record.folder} has no readable {PREDICTIONS}"
    if dataset is None:
        raise UserError(f"{missing}, and its images are not here: give them with --data and --path")
    if not (record.folder / WEIGHTS).exists():
        raise UserError(f"{missing} and no {WEIGHTS} to compute them from: `leanres resume` it")
    split = judged_split(record, dataset)
    probs = load_network(record).logits(split.images).softmax(1)
    done = f"the predictions of {record.folder} were computed anew from {WEIGHTS}"
    found = Predictions(probs, split.labels.cpu())
    return replace(record, predictions=found).with_notes(done)


def images_of_step(recipe: Recipe, train: Split, step: int, count: int = 16) -> Tensor:
    """The first `count` images that optimizer step `step` trained on, as augmented and shrunk.

    (count, 3, H, W) uint8: what the network read, before normalisation.
    """
    counts = StepCounts(recipe, len(train))
    images, _ = next(batches(train, counts, step))
    small = shrink(images[:count].float(), counts.scale(step))
    return small.round().clamp(0, 255).to(torch.uint8)


def read_recipe(record: Record) -> Recipe:
    """The recipe of run.json. UserError where this version of leanres does not know it."""
    return from_dict(record.info["recipe"])
