"""The model card: what a user of a weights file wants to know, as Markdown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.accuracy import wilson_interval
from leanres.metrics.mistakes import confused_pairs
from leanres.metrics.reported import other_metrics, percent
from leanres.report.compare import network_cost
from leanres.report.network import measured_split
from leanres.report.page import render
from leanres.report.record import read_run
from leanres.runs.predictor import load_predictor
from leanres.runs.run import score

# Options of `leanres train` and `campaign` that depend on the machine -> whether they take a value.
MACHINE_OPTIONS = {
    "--out": True,
    "--path": True,
    "--device": True,
    **dict.fromkeys(
        ("--at-once", "--devices", "--minutes", "--results", "--runs", "--weights"), True
    ),
    "--threads": True,
    "--track": True,
    "--no-report": False,
    "--json": False,
}


def model_card(folder: Path | str, weights: Path, dataset: Dataset, device: str = "auto") -> str:
    """The card of `weights`, a file exported from the finished run in `folder`.

    Its figures are those of the file itself, measured on the images that the run was measured on.
    UserError if the run has no result or `dataset` lacks those images.
    """
    record = read_run(folder)
    run = record.result
    if run is None:
        raise UserError(f"{folder} has no result: `leanres resume {folder}` measures it")
    net, split = load_predictor(weights, device), measured_split(record, dataset)
    logits, augmented = (net.logits(split.images, tta) for tta in ("none", run["tta"]))
    result = score(logits, augmented, split, run["tta"])
    low, high = wilson_interval(round(result["accuracy"] * result["n"]), result["n"])
    facts = {
        "record": record,
        "weights": weights.name,
        "command": record.command and portable_command(record.command),
        "cost": network_cost(record),
        "names": split.classes,
        "accuracy": f"{_accuracy_text(result)} of {result['n']:,} (95 % interval without"
        f" augmentation {100 * low:.2f} to {100 * high:.2f})",
        "before_export": _accuracy_text(run),
        "other_metrics": other_metrics(result),
        "pairs": confused_pairs(logits.softmax(1), split.labels, 3),
    }
    return render("card.md.j2", facts) + "\n"


def portable_command(command: str) -> str:
    """The command without the options that depend on the machine: folders, device, output."""
    arguments, kept = iter(shlex.split(command)), []
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if option in MACHINE_OPTIONS:
            if MACHINE_OPTIONS[option] and not equals:
                next(arguments, None)
        else:
            kept.append(argument)
    return shlex.join(kept)


def _accuracy_text(result: dict[str, Any]) -> str:
    augmented = f" ({percent(result['accuracy_tta'])} with {result['tta']})"
    return percent(result["accuracy"]) + (augmented if result["tta"] != "none" else "")
