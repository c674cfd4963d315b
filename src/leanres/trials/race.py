"""Seconds to a target accuracy: one recipe with many seeds, timed cold or warm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.classification import accuracy
from leanres.metrics.inference import predict_both
from leanres.models.zoo import config_to_dict
from leanres.runs import run as runs
from leanres.runs.layout import commit, fingerprints
from leanres.runs.predictor import tta_of
from leanres.training.cuda_graph import WARM_UP
from leanres.training.device import Device, hardware
from leanres.training.loop import NonFiniteLossError, check_finite, restart_, steps
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts
from leanres.training.timing import Stopwatch, matrix_rate
from leanres.trials.jobs import Executor, Job, run_jobs
from leanres.trials.ledger_entry import EntryRun, add_run, read_entry, read_run, summary

NO_TEST = "a race is decided on test images, and this data set has none"


def race(
    train: Callable[[list[int]], Iterable[EntryRun]],
    seeds: Iterable[int],
    target: float,
    out: Path,
    header: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Train the seeds that the ledger entry `out` lacks, yielding its summary after each.

    `target` is an accuracy in [0, 1], with test-time augmentation; `header` is what the entry says
    of itself. The file is written after every run, so a stop loses the running one at most.
    UserError where `out` holds runs of another recipe.
    """
    entry = read_entry(out, header)
    missing = sorted(set(seeds) - {run["seed"] for run in entry["runs"]})
    if not missing:
        yield summary(entry["runs"], target)
        return
    for run in train(missing):
        yield add_run(out, header, run, target)


def cold_run(job: Job, executor: Executor, device: Device | None) -> EntryRun:
    """One training in a process of its own, timed from its start to the test accuracy.

    `wall_seconds` includes the interpreter, the data, the compiler and the evaluation; it is None
    for a run that was resumed, or finished before. `matrix_tflops` is that of `device`; None: it
    runs on another machine. Stopped where a signal came, once the training has saved. UserError
    where the training fails or the job's folder holds another run.
    """
    rates, is_whole = matrix_rates(device) if device else None, False
    for event in run_jobs([job], executor):
        if event.kind in ("started", "retried"):
            is_whole = event.kind == "started"
    seconds = round(event.seconds, 1) if is_whole and event.seconds else None
    if event.is_loss:
        raise UserError(f"seed {job.recipe.seed} {event.kind}: {event.detail}")
    run = read_run(job.folder)
    if run["split"] != "test":
        raise UserError(NO_TEST)
    return run | {"wall_seconds": seconds, "matrix_tflops": rates}


def warm_runs(
    recipe: Recipe, seeds: Iterable[int], dataset: Dataset, device: Device
) -> Iterator[EntryRun]:
    """As the published records are timed: in one process, compiled and warmed up beforehand.

    `train_seconds` holds initialisation, whitening and training, `evaluate_seconds` the test
    images with augmentation; the images lie on the device.
    """
    if dataset.test is None:
        raise UserError(NO_TEST)
    if recipe.chooses_on_val:
        raise UserError("a warm race times every epoch: leave out stop_after and keep_best")
    ready = runs.prepare(recipe, dataset, device)
    test, tta = dataset.test.to(device.name), tta_of(recipe.augment)
    state = ready.state
    for step in phases(ready.setup.counts):
        state.step = step
        for _ in islice(steps(state, ready.setup), WARM_UP + 1):
            pass
    for seed in seeds:
        seeded = replace(recipe, seed=seed)
        setup = replace(ready.setup, recipe=seeded)
        rates = matrix_rates(device)
        watch = Stopwatch(device)
        restart_(state, setup)
        state.losses = [result.loss for result in steps(state, setup)]
        watch("train")
        try:
            check_finite(state)
        except NonFiniteLossError as error:
            raise UserError(f"seed {seed} diverged: {error}; try a lower lr") from None
        plain, augmented = predict_both(
            state.averaged,
            test.images,
            normalize=ready.setup.normalize,
            tta=tta,
            autocast=device.autocast(),
        )
        watch("evaluate")
        yield {
            "seed": seed,
            "accuracy": accuracy(plain, test.labels),
            "accuracy_tta": accuracy(augmented, test.labels),
            "tta": tta,
            "n": len(test),
            "train_seconds": watch.parts["train"],
            "evaluate_seconds": watch.parts["evaluate"],
            "matrix_tflops": rates,
            "commit": commit(),
            "hardware": hardware(device),
            "fingerprints": fingerprints(dataset),
            "recipe": seeded.to_dict(),
            "network": config_to_dict(ready.config),
        }


def phases(counts: StepCounts) -> list[int]:
    """The first step of each phase with kernels of its own: an image size, or the frozen stem."""
    starts = [round(share * counts.total) for share, _ in counts.recipe.progressive_resizing]
    return sorted({s for s in (0, *starts, counts.freeze_stem) if s < counts.total})


def matrix_rates(device: Device) -> dict[str, float]:
    """TFLOP/s of a large matrix product by precision: the speed of shared machines drifts."""
    return {device.precision: round(matrix_rate(device)[0], 3)}
