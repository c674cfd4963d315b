"""What the report needs the run's weights or images for: predictions, filters, training batches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.report.record import Predictions, Record
from leanres.runs.layout import PREDICTIONS
from leanres.runs.predictor import Predictor, load_predictor
from leanres.runs.weights import WEIGHTS
from leanres.training.batch import batches, shrink
from leanres.training.recipe import Recipe, StepCounts


def load_network(record: Record) -> Predictor:
    """The network of the run's weights file, on the CPU. UserError if there is no such file."""
    return load_predictor(record.folder, "cpu", "float32")


def first_filters(net: Predictor) -> Tensor | None:
    """The weights (N, 3, k, k) of the first convolution; None if it has not 3 input channels."""
    convolutions = (m for m in net.model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return first.weight.detach() if first is not None and first.weight.shape[1] == 3 else None


def usable(record: Record, dataset: Dataset | None) -> Dataset | None:
    """The dataset if it has the images, labels and class names of the run, else None."""
    if dataset is None:
        return None
    then = record.info["data"]["fingerprints"]
    now = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    same = all((split.fingerprint if split else None) == then[name] for name, split in now.items())
    return dataset if same else None


def as_trained(record: Record, dataset: Dataset) -> Dataset:
    """The dataset with the images that the run held out of train as its val split."""
    return dataset.with_val(record.info["recipe"]["val"])


def measured_split(record: Record, dataset: Dataset) -> Split:
    """The images that the run was measured on."""
    split = dataset.test if record.split == "test" else as_trained(record, dataset).val
    if split is None:
        raise UserError(f"{dataset.name} has no {record.split} images: give the run's data")
    return split


def with_predictions(record: Record, dataset: Dataset | None) -> Record:
    """The record with predictions, computed from the weights if they are missing.

    UserError if that is impossible; it says what is missing. A record without a result is returned
    unchanged.
    """
    if record.predictions is not None or record.result is None:
        return record
    missing = f"{record.folder} has no readable {PREDICTIONS}"
    if dataset is None:
        raise UserError(f"{missing}, and its images were not found: give --data")
    if not (record.folder / WEIGHTS).exists():
        raise UserError(f"{missing} and no {WEIGHTS} to compute them from: `leanres resume` it")
    split = measured_split(record, dataset)
    probs = load_network(record).logits(split.images).softmax(1)
    note = f"the predictions of {record.folder} were recomputed from {WEIGHTS}"
    return replace(record, predictions=Predictions(probs, split.labels.cpu())).with_notes(note)


def images_of_step(recipe: Recipe, train: Split, step: int, count: int = 16) -> Tensor:
    """The first `count` images of optimizer step `step`, augmented and resized as in training.

    (count, 3, H, W) uint8, before normalisation.
    """
    counts = StepCounts(recipe, len(train))
    images, _ = next(batches(train, counts, step))
    small = shrink(images[:count].float(), counts.scale(step))
    return small.round().clamp(0, 255).to(torch.uint8)
