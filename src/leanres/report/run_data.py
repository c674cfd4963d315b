"""A run's data: whether a dataset has its images, and predictions where the run's are missing."""

from __future__ import annotations

from dataclasses import replace

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.report.record import Record
from leanres.runs.images import as_trained, is_same
from leanres.runs.layout import PREDICTIONS
from leanres.runs.predictions import Predictions
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import WEIGHTS


def data_of_run(record: Record, dataset: Dataset | None) -> Dataset | None:
    """The dataset with what the run held out of train as its val split.

    None if its images, labels or class names are not the run's.
    """
    if dataset is None:
        return None
    then, _ = as_trained(record.folder, record.info, dataset)
    return then.with_val(record.info["recipe"]["val"]) if is_same(record.info, then) else None


def measured_split(record: Record, dataset: Dataset) -> Split:
    """The images that the run was measured on."""
    own = dataset.with_val(record.info["recipe"]["val"])
    split = own.test if record.split == "test" else own.val
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
    probs = load_predictor(record.folder, "cpu", "float32").logits(split.images).softmax(1)
    found = Predictions(probs, split.labels.cpu(), split.files, record.split)
    note = f"the predictions of {record.folder} were recomputed from {WEIGHTS}"
    return replace(record, predictions=found).with_notes(note)
