"""k-fold cross-validation: every training image is predicted by a network that has not seen it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from leanres.data.folds import fold_numbers, in_fold, training_images
from leanres.data.sources import origin_of
from leanres.data.split import Dataset, Split
from leanres.errors import UserError, first_line
from leanres.io import csv_text, write_bytes
from leanres.metrics.calibration import log_probs
from leanres.metrics.classification import CHOICE, METRICS, accuracy_interval, measure
from leanres.metrics.mistakes import label_suspects
from leanres.metrics.statistics import mean_sd
from leanres.runs.images import keys_of, read_images
from leanres.runs.layout import PREDICTIONS
from leanres.runs.ledger import FOLDS
from leanres.runs.predictions import predictions_table, read_predictions
from leanres.runs.run_json import INFO, read_info
from leanres.training.early_stopping import check_val
from leanres.training.recipe import Recipe
from leanres.trials.executors import local_executor
from leanres.trials.jobs import Event, Executor, Job, is_finished, run_jobs
from leanres.version import __version__

SUMMARY, OUT_OF_FOLD, LABEL_ERRORS = FOLDS, "out_of_fold.parquet", "label_errors.csv"
FIRST = 10  # likely label errors in the summary


def cross_validate(
    folder: Path | str,
    recipe: Recipe,
    dataset: Dataset,
    folds: int = 5,
    *,
    executor: Executor | None = None,
    origin: Mapping[str, Any] = {},
    watch: Callable[[Event], None] = lambda event: None,
) -> dict[str, Any]:
    """Train `folds` networks on `dataset`, each without one fold, and predict that fold with it.

    Every image of train and val is in one fold; test is not read. FOLDER/fold-1 and so on are run
    folders, whose test images are the fold. Interrupted, the same call continues. Returned, and
    written as folds.json, are the figures of each fold, their `mean` and `sd`, and the `pooled`
    ones of all images. out_of_fold.parquet has the predictions, and label_errors.csv the images
    whose label is likely wrong, most suspicious first. The recipe's `val` is held out of a fold's
    training images only if the recipe chooses an epoch on it.

    `executor` runs the trainings, by default one after the other in this process; `origin` says
    where other processes find the data (`data.sources.locate`); `watch` is called with each event.
    UserError where the images are too few for the folds or FOLDER holds something else, before any
    training, and where a training failed, after the others.
    """
    dataset.check_trainable()
    check_val(recipe, recipe.val > 0)
    recipe = recipe if recipe.chooses_on_val else replace(recipe, val=0)
    folder, images = Path(folder), training_images(dataset)
    numbers = fold_numbers(images, folds)
    own = origin_of(dataset) | dict(origin) | {"measure": "test"}
    jobs = [
        Job(recipe, folder / f"fold-{fold}", own | {"fold": [fold, folds]})
        for fold in range(1, folds + 1)
    ]
    for job in jobs:
        _check(job, dataset)
    lost = []
    for event in run_jobs(jobs, executor or local_executor(dataset, recipe, ["auto"])):
        watch(event)
        if event.is_loss:
            lost.append(f"{event.job.folder} {event.kind}: {event.detail}")
    if lost:
        raise UserError(f"{len(lost)} of {folds} folds are without a result; {lost[0]}")
    return _write(folder, jobs, images, torch.from_numpy(numbers))


def _check(job: Job, dataset: Dataset) -> None:
    """UserError where the job's folder holds a run of another fold, recipe or data."""
    if (job.folder / INFO).exists():
        there, own = read_info(job.folder, queued=True)["origin"].get("fold"), job.origin["fold"]
        if there != own:
            holds = f"fold {there[0]} of {there[1]}" if there else "another run"
            raise UserError(f"{job.folder} holds {holds}: name another folder with --out")
        is_finished(job, in_fold(dataset, *own))


def _write(folder: Path, jobs: list[Job], images: Split, numbers: Tensor) -> dict[str, Any]:
    """Write the three files from the finished runs; the summary."""
    probs = torch.empty(len(images), len(images.classes))
    for fold, job in enumerate(jobs, 1):
        members = (numbers == fold).nonzero()[:, 0]
        probs[members] = _held_out_probs(job.folder, images.subset(members))
    suspects = _label_errors(probs, images, numbers)
    pooled = measure(log_probs(probs), images.labels) | {"tta": "none"}
    runs = [_figures(fold, job.folder) for fold, job in enumerate(jobs, 1)]
    spread = {key: mean_sd([run[key] for run in runs]) for key in (*METRICS, "train_seconds")}
    first = read_info(jobs[0].folder)
    summary = {
        "leanres": __version__,
        **{key: first[key] for key in ("started", "commit", "hardware")},
        "data": {key: first["data"][key] for key in ("name", "source")},
        "params": first["result"]["params"],
        "recipe": jobs[0].recipe.to_dict(),
        "images": len(images),
        "fingerprint": images.fingerprint,
        "folds": runs,
        "spread": spread,
        "pooled": pooled | {"interval": list(accuracy_interval(pooled))},
        "label_errors": {"count": len(suspects), "first": suspects[:FIRST]},
    }
    table = predictions_table(probs, images, fold=numbers.numpy())
    write_bytes(folder / OUT_OF_FOLD, table)
    write_bytes(folder / LABEL_ERRORS, _csv(suspects))
    write_bytes(folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _held_out_probs(run: Path, held_out: Split) -> Tensor:
    """The run's probabilities (N, K) for the images of its fold. UserError for other ones."""
    if not np.array_equal(read_images(run).of("test"), keys_of(held_out)):
        raise UserError(f"{run} had the images in another order: name another folder with --out")
    try:
        found = read_predictions(run / PREDICTIONS, held_out.classes, "test")
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        why = first_line(error)
        raise UserError(f"{run / PREDICTIONS} cannot be read ({why}): delete {run}") from None
    if not torch.equal(found.labels, held_out.labels.cpu()):
        raise UserError(f"{run / PREDICTIONS} is of other labels: delete {run}")
    return found.probs


def _figures(fold: int, run: Path) -> dict[str, Any]:
    """What the summary says of one fold."""
    result = read_info(run)["result"]
    keys = ("n", *METRICS, "tta", *CHOICE, "train_seconds")
    return {"fold": fold, "run": run.name} | {k: result[k] for k in keys if k in result}


def _label_errors(probs: Tensor, images: Split, numbers: Tensor) -> list[dict[str, Any]]:
    """The images whose label is likely wrong, most suspicious first."""
    rows = []
    for i in label_suspects(probs, images.labels, len(images)).tolist():
        label, best = int(images.labels[i]), int(probs[i].argmax())
        names = {"file": images.files[i], "label": images.classes[label]}
        shares = {"p_label": float(probs[i, label]), "p_predicted": float(probs[i, best])}
        rows.append(
            names | {"predicted": images.classes[best]} | shares | {"fold": int(numbers[i])}
        )
    return rows


def _csv(rows: list[dict[str, Any]]) -> bytes:
    """The rows under their heads; no spreadsheet takes a name for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "label", "predicted", "p_label", "p_predicted", "fold"])
    for row in rows:
        names = map(csv_text, (row["file"], row["label"], row["predicted"]))
        shares = (f"{row[key]:.6f}" for key in ("p_label", "p_predicted"))
        writer.writerow([*names, *shares, row["fold"]])
    return text.getvalue().encode("utf-8", "surrogateescape")
