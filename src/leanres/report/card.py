"""A model card: what a reader of a weights file wants to know, as Markdown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.accuracy import wilson_interval
from leanres.metrics.mistakes import confused_pairs
from leanres.report.compare import cost
from leanres.report.network import judged_split
from leanres.report.record import read_run
from leanres.report.sections import duration, percent
from leanres.runs.ledger import differences, shown
from leanres.runs.predictor import load_predictor
from leanres.runs.run import score
from leanres.training.recipe import Recipe

# Options that say where and how, not what; whether each takes a value.
WHERE = {
    "--out": True,
    "--path": True,
    "--device": True,
    "--threads": True,
    "--track": True,
    "--no-report": False,
    "--json": False,
}


def model_card(folder: Path | str, weights: Path, dataset: Dataset, device: str = "auto") -> str:
    """The card of `weights`, a file made of the finished run in `folder`.

    The file itself is measured, as `leanres evaluate` does, on the images that the run was
    measured on.
    UserError where the run has no result, or `dataset` not those images.
    """
    record = read_run(folder)
    run, info = record.result, record.info
    if run is None:
        raise UserError(f"{folder} has no result: `leanres resume {folder}` measures it")
    net, split = load_predictor(weights, device), judged_split(record, dataset)
    logits, augmented = (net.logits(split.images, tta) for tta in ("none", run["tta"]))
    found = score(logits, augmented, split, run["tta"])
    low, high = wilson_interval(round(found["accuracy"] * found["n"]), found["n"])
    names, where, data = split.classes, info["hardware"], info["data"]
    machine = where.get("gpu") or f"{where.get('cpu')}, {where['threads']} threads"
    pairs = confused_pairs(logits.softmax(1), split.labels, 3)
    mixed = (f"{p.count} {names[p.true]} images taken for {names[p.predicted]}" for p in pairs)
    changes = differences(Recipe().to_dict(), info["recipe"])
    summary, size = cost(record), info["preprocess"]["size"]
    facts = {
        "network": f"{summary.params:,} parameters, {summary.macs / 1e6:,.1f} MMACs, receptive"
        f" field {summary.receptive_field} px",
        "input": f"RGB of {size}x{size} px; normalisation and class names are in the file",
        "classes": ", ".join(names),
        "trained on": f"{data['train']:,} images of {data['name']} (fingerprint"
        f" {data['fingerprints']['train'][:16]}), seed {info['recipe']['seed']}",
        f"{record.split} accuracy": f"{_accuracy(found)} of {found['n']:,} (95 % interval without"
        f" augmentation {100 * low:.2f} to {100 * high:.2f})",
        "before rounding": _accuracy(run),
        "NLL, ECE": f"{found['nll']:.4f} nats, {percent(found['ece'])}",
        "most confused": ", ".join(mixed) or "nothing",
        "training took": f"{duration(run['train_seconds'])} on {machine}, {where['precision']}",
        "made by": f"leanres {info.get('leanres')}, commit {info.get('commit')}",
        "recipe": ", ".join(f"{key} = {own}" for key, _, own in changes) or "speed, unchanged",
    }
    command = (info.get("origin") or {}).get("command")
    return "\n".join(
        [
            f"# {shown(info['recipe']['model'])}",
            "",
            f"`{weights.name}`; the figures are of the file itself.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            "```",
            *([f"{_what(command)}   # trains it again, at that commit"] if command else []),
            f"leanres evaluate {weights.name}",
            f"leanres predict {weights.name} IMAGES",
            "```",
            "",
        ]
    )


def _what(command: str) -> str:
    """The command without what is the machine's alone: its folders, its device, its output."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        option, equals, _ = word.partition("=")
        if option in WHERE:
            if WHERE[option] and not equals:
                next(words, None)
        else:
            kept.append(word)
    return shlex.join(kept)


def _accuracy(result: dict[str, Any]) -> str:
    augmented = f" ({percent(result['accuracy_tta'])} with {result['tta']})"
    return percent(result["accuracy"]) + (augmented if result["tta"] != "none" else "")
