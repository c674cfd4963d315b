"""The model card: what a user of a weights file wants to know, as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import file_digest
from leanres.metrics.classification import CHOICE
from leanres.metrics.mistakes import confused_pairs
from leanres.report.page import render
from leanres.report.record import read_record
from leanres.report.run_data import data_of_run, measured_split
from leanres.runs.command import without_options
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import MAX_BYTES

# Options of `leanres train` and `campaign` that depend on the machine -> whether they take a value.
MACHINE_OPTIONS = {"--no-report": False, "--json": False} | dict.fromkeys(
    [
        *("--out", "--path", "--device", "--threads", "--track", "--at-once"),
        *("--devices", "--minutes", "--results", "--runs", "--weights"),
    ],
    True,
)


def model_card(
    folder: Path | str,
    weights: Path,
    dataset: Dataset,
    device: str = "auto",
    check: Mapping[str, str] | None = None,
) -> str:
    """The card of `weights`, a file exported from the finished run in `folder`.

    Its figures are those of the file itself, measured on the images that the run was measured on.
    `check` is what the check of the export measured, as text by name.
    UserError if the run has no result or `dataset` lacks those images.
    """
    record = read_record(folder)
    run = record.result
    if run is None:
        raise UserError(f"{folder} has no result: `leanres resume {folder}` measures it")
    own = data_of_run(record, dataset)
    if own is None:
        raise UserError(f"{dataset.name} has not the images of {folder}: give the run's data")
    split = measured_split(record, own)
    predictor = load_predictor(weights, device)
    result, logits = predictor.measure(split, run["tta"])
    chosen = {key: run[key] for key in ("split", *CHOICE) if key in run}
    facts = {
        "record": record,
        "weights": weights.name,
        "sha256": file_digest(weights, MAX_BYTES),
        "result": result | chosen,
        "device": predictor.device,
        "command": record.command and portable_command(record.command),
        "check": check or {},
        "pairs": confused_pairs(logits.softmax(1), split.labels, 3),
    }
    return render("card.md.j2", facts) + "\n"


def portable_command(command: str) -> str:
    """The command without the options that depend on the machine: folders, device, output."""
    return shlex.join(without_options(shlex.split(command), MACHINE_OPTIONS))
