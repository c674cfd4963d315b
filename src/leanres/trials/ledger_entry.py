"""Ledger entries: one JSON file for the runs of a recipe with many seeds, and their summary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanres.errors import UserError
from leanres.io import locked, parse_json, read_file, write_bytes
from leanres.metrics.classification import METRICS
from leanres.metrics.statistics import mean_sd
from leanres.runs.layout import read_history
from leanres.runs.ledger import entry_sum
from leanres.runs.run_json import matches_run, read_info
from leanres.training.recipe import from_dict

KEPT = ("split", "tta", "n", "params", "train_seconds")  # beside the reported metrics
SUMMED = ("accuracy", "accuracy_tta", "train_seconds", "evaluate_seconds", "wall_seconds")
EntryRun = dict[str, Any]


def read_run(folder: Path) -> EntryRun:
    """What a ledger entry keeps of a finished run; None for what was not measured."""
    info = read_info(folder)
    return {
        "seed": info["recipe"]["seed"],
        **{key: info["result"].get(key) for key in (*METRICS, *KEPT)},
        "commit": info["commit"],
        "started": info["started"],
        "hardware": info["hardware"],
        "fingerprints": info["data"]["fingerprints"],
        "recipe": info["recipe"],
        "network": info["network"],
        "epochs": read_history(folder)[0],
    }


def read_entry(out: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The ledger entry in `out` under this header (`command`, `counted`, `recipe`).

    It has no runs where there is no file. UserError where the file is something else, or holds
    runs of another recipe or counted in another way.
    """
    if not out.exists():
        return {"runs": []} | header
    try:
        entry: dict[str, Any] = parse_json(read_file(out))
        recipe = from_dict(header["recipe"])
        fits = [matches_run(run, replace(recipe, seed=run["seed"])) for run in entry["runs"]]
        counted = entry["counted"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{out} is not a ledger entry of a race or campaign: name another"
        ) from None
    if counted != header["counted"]:
        raise UserError(f"{out} holds runs counted {counted}: name another file")
    if not all(fits):
        raise UserError(f"{out} holds runs of another recipe: name another file")
    return entry | header


def add_run(
    out: Path, header: dict[str, Any], run: EntryRun, target: float | None = None
) -> dict[str, Any]:
    """Put a run into the ledger entry, unless its seed is there already; the entry's summary.

    The file is locked meanwhile and written atomically: no run of another process is lost.
    """
    with locked(out):
        entry = read_entry(out, header)
        if run["seed"] not in {known["seed"] for known in entry["runs"]}:
            entry["runs"].append(run)
            entry["summary"] = summary(entry["runs"], target)
            entry["sha256"] = entry_sum(entry)
            write_bytes(out, (json.dumps(entry, indent=1) + "\n").encode())
    return summary(entry["runs"], target)


def summary(runs: list[EntryRun], target: float | None = None) -> dict[str, Any]:
    """n, mean and sample deviation of each figure, and the share of seeds that reach `target`."""
    figures: dict[str, Any] = {"n": len(runs)}
    if target is not None:
        reached = sum(run["accuracy_tta"] >= target for run in runs)
        figures |= {"target": target, "reached": reached / len(runs)}
    for key in SUMMED:
        values = [run[key] for run in runs if run.get(key) is not None]
        if values:
            figures[key] = mean_sd(values)
    return figures
