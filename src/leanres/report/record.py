"""Record: what a run folder tells of its run, read without torch's help or the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from leanres.errors import UserError
from leanres.metrics.accuracy import wilson_interval
from leanres.runs.layout import INFO, METRICS, PREDICTIONS, TIMES, read_info, read_times
from leanres.training.loop import MetricsRow


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, K) float32 and labels (N,) int64 of the images that judged the run."""

    probs: Tensor
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """The likeliest class of each image, (N,) int64."""
        return self.probs.argmax(1)

    @property
    def correct(self) -> Tensor:
        """Whether each image was recognised, (N,) bool."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Record:
    """A run as its folder has it; `read_run(folder)` makes it.

    `notes` are for people: what is missing, and what was passed over.
    """

    folder: Path
    info: dict[str, Any]
    rows: list[MetricsRow]  # one per finished epoch, its times with it
    predictions: Predictions | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.info["preprocess"]["classes"])

    @property
    def result(self) -> dict[str, Any] | None:
        """The final measurement; None while the run is being written, or was stopped."""
        result = self.info.get("result")
        return result if result and result.get("split") else None

    @property
    def split(self) -> str:
        """What the result was measured on: "test" or "val"."""
        return str((self.result or {}).get("split", "test"))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy. ValueError without a result."""
        if self.result is None:
            raise ValueError(f"{self.folder} has no result")
        n = self.result["n"]
        return wilson_interval(round(self.result["accuracy"] * n), n)

    @property
    def epochs(self) -> int:
        """How many the recipe asks for."""
        return int(self.info["recipe"]["epochs"])

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the rows that have a number under `key`."""
        pairs = [(row["epoch"], row[key]) for row in self.rows if _is_number(row.get(key))]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def with_notes(self, *notes: str) -> Record:
        """The same with more to say."""
        return replace(self, notes=(*self.notes, *notes))


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def read_run(folder: Path | str) -> Record:
    """What is in a run folder. UserError where it is none; all else that fails is a note."""
    folder = Path(folder)
    info = read_info(folder)
    if not isinstance(info["preprocess"].get("classes"), Sequence):
        raise UserError(f"{folder / INFO} is damaged: it lacks preprocess.classes")
    rows, skipped = read_rows(folder / METRICS)
    times = {time["epoch"]: time for time in read_times(folder / TIMES) if "epoch" in time}
    record = Record(folder, info, [row | times.get(row["epoch"], {}) for row in rows], None)
    if skipped:
        lines = "1 line" if skipped == 1 else f"{skipped} lines"
        record = record.with_notes(f"{lines} of {folder / METRICS} could not be read: left out")
    if record.result is None:
        done = f"{len(rows)} of {record.epochs} epochs are there"
        return record.with_notes(f"{folder} has no result yet: {done}")
    return _with_predictions(record)


def read_rows(path: Path) -> tuple[list[MetricsRow], int]:
    """The rows of metrics.jsonl and how many of its lines are damaged; ([], 0) without a file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    rows = [row for row in map(_row, lines) if row is not None]
    return rows, len([line for line in lines if line.strip()]) - len(rows)


def _row(line: bytes) -> MetricsRow | None:
    try:
        row = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one too
        return None
    return row if isinstance(row, dict) and _is_number(row.get("epoch")) else None


def _with_predictions(record: Record) -> Record:
    path = record.folder / PREDICTIONS
    if not path.exists():
        return record.with_notes(f"{record.folder} has no {PREDICTIONS}")
    try:
        found = _read_predictions(path, record.classes)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        return record.with_notes(f"{path} cannot be read ({reason})")
    assert record.result is not None
    if len(found.labels) != record.result["n"]:
        count = f"{len(found.labels)} images, the result {record.result['n']}"
        return record.with_notes(f"{path} is of another measurement ({count}): left out")
    return replace(record, predictions=found)


def _read_predictions(path: Path, classes: tuple[str, ...]) -> Predictions:
    table = pq.read_table(path)
    columns = [table[f"p_{name}"].to_numpy() for name in classes]
    probs = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    if not (
        probs.isfinite().all() and len(labels) and 0 <= labels.min() <= labels.max() < len(classes)
    ):
        raise ValueError("values out of range")
    return Predictions(probs, labels)
