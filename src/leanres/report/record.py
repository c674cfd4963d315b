"""Record: the content of a run folder, read without the network and without the images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from leanres.errors import first_line
from leanres.models.config import ModelConfig
from leanres.models.cost import Summary, summarize
from leanres.models.zoo import config_from_dict, network_name
from leanres.runs.layout import (
    HISTORY,
    PREDICTIONS,
    is_number,
    read_history,
    read_times,
    with_times,
)
from leanres.runs.ledger import differences
from leanres.runs.manifest import edited
from leanres.runs.predictions import Predictions, read_predictions
from leanres.runs.run_json import read_info
from leanres.training.loop import MetricsRow
from leanres.training.recipe import Recipe


@dataclass(frozen=True)
class Record:
    """A run as stored in its folder; `read_record(folder)` returns it.

    `notes` are sentences about what is missing or was skipped.
    """

    folder: Path
    info: dict[str, Any]
    rows: list[MetricsRow]  # one per finished epoch, with its times
    predictions: Predictions | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.info["preprocess"]["classes"])

    @property
    def result(self) -> dict[str, Any] | None:
        """The final evaluation; None for an unfinished run, or if there were no images for it."""
        result = self.info.get("result")
        return result if result and result["split"] else None

    @property
    def why_no_result(self) -> str:
        """What follows "this run" where it has no result."""
        if self.info.get("result"):
            return "was not measured: there were no test and no val images"
        return f"has no result yet: {len(self.rows)} of {self.epochs} epochs are done"

    @property
    def split(self) -> str:
        """What the result is measured on: "test" or "val"."""
        return str((self.result or {}).get("split", "test"))

    @property
    def network(self) -> str:
        """The network's name; "custom resnet" for one that has none."""
        return network_name(self.info["recipe"]["model"])

    @property
    def config(self) -> ModelConfig:
        """The network's config. UserError if this version of leanres does not know it."""
        return replace(config_from_dict(self.info["network"]), num_classes=len(self.classes))

    @property
    def cost(self) -> Summary:
        """Parameters, MACs and receptive field of the network for images of the run's size."""
        size, config = int(self.info["preprocess"]["size"]), self.config
        return summarize(config, (config.in_channels, size, size))

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, as the recipe says."""
        return int(self.info["recipe"]["epochs"])

    @property
    def last_epoch(self) -> int:
        """The last epoch that a run was trained: less than `epochs` where it ended early."""
        return int((self.result or {}).get("last_epoch", self.epochs))

    @property
    def command(self) -> str | None:
        """The command that started the run; None for a run started from Python."""
        command: str | None = self.info["origin"].get("command")
        return command

    @property
    def hardware(self) -> str:
        """Processor, threads, precision, kernels and version of torch that trained the run."""
        used = self.info["hardware"]
        threads = "1 thread" if used["threads"] == 1 else f"{used['threads']} threads"
        device = f"{used['gpu'] or used['cpu']}, {threads}, {used['precision']}"
        return f"{device}; kernels: {used['kernels']}; torch {used['torch']}"

    @property
    def recipe_changes(self) -> list[tuple[str, str, str]]:
        """(setting, default, value in this run) for each setting that is not the default."""
        return differences(Recipe().to_dict(), self.info["recipe"])

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the epochs with a finite number for `key`."""
        pairs = [(row["epoch"], row[key]) for row in self.rows if is_number(row.get(key))]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def with_notes(self, *notes: str) -> Record:
        """The same record with further notes."""
        return replace(self, notes=(*self.notes, *notes))


def read_record(folder: Path | str) -> Record:
    """Read a run folder. UserError if it is not one; unreadable parts become notes."""
    folder = Path(folder)
    info = read_info(folder)
    rows, damaged = read_history(folder)
    rows = with_times(rows, read_times(folder))
    record = Record(folder, info, rows, None, tuple(edited(folder)))
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        record = record.with_notes(f"{lines} of {folder / HISTORY} could not be read: left out")
    if fold := info["origin"].get("fold"):
        held_out = "its test images are the training images that it held out"
        record = record.with_notes(f"fold {fold[0]} of {fold[1]} of a cross-validation: {held_out}")
    if (last := record.last_epoch) < record.epochs:
        ended = f"training ended early, after epoch {last} of {record.epochs}"
        record = record.with_notes(f"{ended}: stop_after = {info['recipe']['stop_after']}")
    if record.result is None:
        return record.with_notes(f"{folder} {record.why_no_result}")
    return _with_predictions(record)


def _with_predictions(record: Record) -> Record:
    path = record.folder / PREDICTIONS
    if not path.exists():
        return record.with_notes(f"{record.folder} has no {PREDICTIONS}")
    try:
        found = read_predictions(path, record.classes, record.split)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        return record.with_notes(f"{path} cannot be read ({first_line(error)})")
    assert record.result is not None
    if len(found.labels) != record.result["n"]:
        count = f"{len(found.labels)} images, the result {record.result['n']}"
        return record.with_notes(f"{path} belongs to another evaluation ({count}): left out")
    return replace(record, predictions=found)
