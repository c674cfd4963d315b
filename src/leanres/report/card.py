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
from leanres.report.record import Record, read_run
from leanres.report.sections import duration
from leanres.runs.ledger import shown
from leanres.runs.predictor import load_predictor
from leanres.runs.run import score

# Options of `leanres train` that depend on the machine -> whether they take a value.
MACHINE_OPTIONS = {
    "--out": True,
    "--path": True,
    "--device": True,
    **dict.fromkeys(("--at-once", "--devices", "--minutes", "--results", "--runs"), True),
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
    if record.result is None:
        raise UserError(f"{folder} has no result: `leanres resume {folder}` measures it")
    facts = _facts(record, weights, dataset, device)
    train = [f"{portable_command(record.command)}   # trains it again"] if record.command else []
    lines = [
        f"# {shown(record.info['recipe']['model'])}",
        "",
        f"`{weights.name}`; the figures are those of this file.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "```",
        *train,
        f"leanres evaluate {weights.name}",
        f"leanres predict {weights.name} IMAGES",
        "```",
        "",
    ]
    return "\n".join(lines)


def _facts(record: Record, weights: Path, dataset: Dataset, device: str) -> dict[str, str]:
    """The rows of the card: what the network is, how good the file is, how it was trained."""
    run, info, cost = record.result, record.info, network_cost(record)
    assert run is not None
    net, split = load_predictor(weights, device), measured_split(record, dataset)
    logits, augmented = (net.logits(split.images, tta) for tta in ("none", run["tta"]))
    result = score(logits, augmented, split, run["tta"])
    low, high = wilson_interval(round(result["accuracy"] * result["n"]), result["n"])
    names, size, data = split.classes, info["preprocess"]["size"], info["data"]
    pairs = confused_pairs(logits.softmax(1), split.labels, 3)
    confused = [f"{p.count} {names[p.true]} predicted as {names[p.predicted]}" for p in pairs]
    changes = [f"{key} = {own}" for key, _, own in record.recipe_changes]
    return {
        "network": f"{cost.params:,} parameters, {cost.macs / 1e6:,.1f} MMACs, receptive field"
        f" {cost.receptive_field} px",
        "input": f"RGB of {size}x{size} px; normalisation and class names are in the file",
        "classes": ", ".join(names),
        "trained on": f"{data['train']:,} images of {data['name']} (fingerprint"
        f" {data['fingerprints']['train'][:16]}), seed {info['recipe']['seed']}",
        f"{record.split} accuracy": f"{_accuracy_text(result)} of {result['n']:,} (95 % interval"
        f" without augmentation {100 * low:.2f} to {100 * high:.2f})",
        "before export": _accuracy_text(run),
        "other metrics": other_metrics(result),
        "most confused": ", ".join(confused) or "none",
        "training took": f"{duration(run['train_seconds'])} on {record.hardware}",
        "made by": f"leanres {info['leanres']}, commit {info['commit']}",
        "recipe": ", ".join(changes) or "speed, unchanged",
    }


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
