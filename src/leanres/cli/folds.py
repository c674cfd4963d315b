"""`leanres train --folds`: cross-validation, its table and the likely label errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanres.cli import options
from leanres.cli.console import counted, print_table, say
from leanres.errors import UserError, shortened

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.training.recipe import Recipe
    from leanres.trials.jobs import Executor

SHOWN = 5  # likely label errors
MAX_NAME = 24  # characters of a file's or class's name


def check(
    folds: int | None,
    measure: str,
    track: str,
    lr_max: str | None,
    at_once: int,
    devices: str | None,
) -> None:
    """UserError for an option that is for a single training alone, or for folds alone."""
    if folds is None:
        if at_once or devices:
            name = "--at-once" if at_once else "--devices"
            raise UserError(f"{name} is for many trainings: give --folds too, or leave it out")
        return
    if measure == "val":
        raise UserError(
            "--folds: each image is measured by the network that has not seen it: leave out"
            " --measure val"
        )
    if track:
        raise UserError("--folds: --track follows a single training: leave it out")
    if lr_max == "auto":
        raise UserError("--folds: give --lr-max a number, which leanres find-lr finds")


def train_folds(
    folds: int,
    recipe: Recipe,
    dataset: Dataset,
    executor: Executor,
    folder: Path,
    origin: dict[str, Any],
    as_json: bool,
) -> None:
    """Train the folds and print what came of them."""
    from leanres.trials.folds import cross_validate

    say(f"{folds} folds of {dataset.name} -> {folder}", err=as_json)
    summary = cross_validate(
        folder,
        recipe,
        dataset,
        folds,
        executor=executor,
        origin=origin,
        watch=lambda event: say(options.event_line(event), err=True),
    )
    if as_json:
        say(json.dumps(summary))
    else:
        _print(summary, folder)


def _print(summary: dict[str, Any], folder: Path) -> None:
    from leanres.metrics.classification import METRICS, accuracy_text, other_metrics
    from leanres.trials.folds import LABEL_ERRORS, OUT_OF_FOLD, SUMMARY

    rows, spread = summary["folds"], summary["spread"]
    tta = rows[0]["tta"] != "none"
    shown = {k: m for k, m in METRICS.items() if k in spread and (tta or k != "accuracy_tta")}
    table = [
        [str(row["fold"]), f"{row['n']:,}", *(m.text(row[k]) for k, m in shown.items())]
        for row in rows
    ]
    table += [
        [name, "", *(m.text(spread[k][name]) for k, m in shown.items())] for name in ("mean", "sd")
    ]
    heads = ["fold", "images", *(m.label for m in shown.values())]
    print_table(heads, table, drop=_less_telling([m.label for m in shown.values()]))
    pooled = summary["pooled"]
    say(f"out-of-fold accuracy {accuracy_text(pooled)}\n{other_metrics(pooled, short=True)}")
    _print_label_errors(**summary["label_errors"])
    files = ", ".join((SUMMARY, OUT_OF_FOLD, LABEL_ERRORS))
    say(f"{folder}/ holds {files} and the runs fold-1 to fold-{len(rows)}")


def _less_telling(labels: list[str]) -> list[str]:
    """Columns to leave out of a narrow terminal, the first one first."""
    return [label for label in labels[::-1] if label not in ("accuracy", "NLL", "ECE")]


def _print_label_errors(count: int, first: list[dict[str, Any]]) -> None:
    if not count:
        say("no likely label errors")
        return
    errors = counted(count, "likely label error")
    say(f"{errors}, most suspicious first (a person has to look):")
    rows = [
        [
            *(shortened(row[key], MAX_NAME) for key in ("file", "label", "predicted")),
            *(f"{100 * row[key]:.1f}" for key in ("p_label", "p_predicted")),
        ]
        for row in first[:SHOWN]
    ]
    heads = ["image", "label", "predicted", "p(label) %", "p(predicted) %"]
    print_table(heads, rows, left=("label", "predicted"))
