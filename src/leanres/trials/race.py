"""Seconds to a target accuracy: one recipe, many seeds, counted in both ways there are."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import write_bytes
from leanres.metrics.accuracy import accuracy
from leanres.metrics.inference import predict_both
from leanres.metrics.statistics import mean_sd
from leanres.models.zoo import config_to_dict
from leanres.runs import run as runs
from leanres.runs.layout import INFO, METRICS, commit, fingerprints, read_info
from leanres.runs.stop import Stop
from leanres.training.cuda_graph import WARM_UP
from leanres.training.device import Device, Stopwatch, hardware, matrix_rate
from leanres.training.loop import restart_, steps
from leanres.training.recipe import Recipe, StepCounts, from_dict, matches_run

KEPT = ("split", "accuracy", "accuracy_tta", "tta", "nll", "ece", "n", "params", "train_seconds")
SUMMED = ("accuracy", "accuracy_tta", "train_seconds", "evaluate_seconds", "wall_seconds")
NO_TEST = "a race is decided on test images, and this data set has none"
Lap = dict[str, Any]


def cold_runs(
    words: list[str], recipe: Recipe, seeds: Iterable[int], folder: Path, device: Device
) -> Iterator[Lap]:
    """Each seed by `cold_run`, its run folder named `folder` and the seed."""
    for seed in seeds:
        mine = from_dict({"seed": seed}, recipe)
        yield cold_run(words, mine, folder.with_name(f"{folder.name}-{seed}"), device)


def cold_run(words: list[str], recipe: Recipe, folder: Path, device: Device) -> Lap:
    """The user's way: `leanres train WORDS` in a process of its own, from start to answer.

    `recipe` is what WORDS and its seed come to. `wall_seconds` holds the interpreter, the data,
    the compiler and the evaluation too. A run in `folder` that was cut off is resumed, which spoils
    its wall watch (None then) and nothing else; a finished one is taken as it is. Stopped where a
    signal came, once the training has saved. UserError where `folder` holds another run.
    """
    rates = matrix_rates(device)
    info = read_info(folder) if (folder / INFO).exists() else None
    if info is not None and not matches_run(info, recipe):
        raise UserError(f"{folder} holds a run of another recipe: give another --runs")
    fresh = ["train", *words, "--seed", str(recipe.seed), "--out", str(folder)]
    told = ["resume", str(folder)] if info is not None else fresh
    begun = time.perf_counter()
    if info is None or "result" not in info:
        code = _leanres([*told, "--no-report", "--json"])
        if code:
            called = f"leanres {' '.join(told)}"
            raise UserError(f"seed {recipe.seed}: {called} ended with {code}")
    wall = time.perf_counter() - begun
    found = read_race_run(folder)
    if found["split"] != "test":
        chosen = info is not None and info["data"].get("test")
        raise UserError(f"{folder} was measured on val: give another --runs" if chosen else NO_TEST)
    measured = None if info is not None else round(wall, 1)
    return found | {"wall_seconds": measured, "matrix_tflops": rates}


def _leanres(words: list[str]) -> int:
    """The exit code of a leanres process. Our Ctrl-C and SIGTERM reach it as one SIGTERM."""
    command = [sys.executable, "-m", "leanres", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    with Stop() as stop:
        while process.poll() is None and not stop.signal:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        if stop.signal:
            process.terminate()  # it saves between two steps
        code = process.wait()
    stop.check()
    return code


def read_race_run(folder: Path) -> Lap:
    """What a ledger entry keeps of a finished run; None for what was not measured."""
    info = read_info(folder)
    return {
        "seed": info["recipe"]["seed"],
        **{key: info["result"].get(key) for key in KEPT},
        "commit": info["commit"],
        "started": info["started"],
        "hardware": info["hardware"],
        "fingerprints": info["data"]["fingerprints"],
        "recipe": info["recipe"],
        "network": info.get("network"),
        "epochs": [json.loads(x) for x in (folder / METRICS).read_text().splitlines()],
    }


def warm_runs(
    recipe: Recipe, seeds: Iterable[int], dataset: Dataset, device: Device, tta: str = "flip-shift"
) -> Iterator[Lap]:
    """The records' way: in one process, compiled and warmed up before the watch starts.

    `train_seconds` holds initialisation, whitening and training, `evaluate_seconds` the test
    images with augmentation; the images lie on the device.
    """
    if dataset.test is None:
        raise UserError(NO_TEST)
    ready = runs.prepare(recipe, dataset, device)
    test = dataset.test.to(device.name)
    state = ready.state
    for step in phases(ready.counts):
        state.step = step
        for _ in islice(steps(state, ready.setup), WARM_UP + 1):
            pass
    for seed in seeds:
        mine = from_dict({"seed": seed}, recipe)
        setup = replace(ready.setup, recipe=mine)
        rates = matrix_rates(device)
        watch = Stopwatch(device)
        restart_(state, setup)
        for _ in steps(state, setup):
            pass
        watch("train")
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
            "recipe": mine.to_dict(),
            "network": config_to_dict(ready.config),
        }


def phases(plan: StepCounts) -> list[int]:
    """The first step of every phase that may run kernels of its own: sizes, and the frozen stem."""
    starts = [round(share * plan.total) for share, _ in plan.recipe.progressive_resizing]
    return sorted({s for s in (0, *starts, plan.freeze_stem) if s < plan.total})


def matrix_rates(device: Device) -> dict[str, float]:
    """TFLOP/s of a 4096^3 product by precision: shared machines drift, so each lap states it."""
    return {device.precision: round(matrix_rate(device), 3)}


def race(
    laps: Callable[[list[int]], Iterable[Lap]],
    seeds: Iterable[int],
    target: float,
    out: Path,
    claim: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Run `laps` of the seeds that the ledger entry `out` lacks, yielding its summary after each.

    `target` is an accuracy in [0, 1], with test-time augmentation; `claim` is what the entry says
    of itself, with its `recipe`. The file is rewritten whole after every lap, so that a stop
    loses the running one at most. UserError where `out` holds laps of another recipe.
    """
    entry = read_entry(out, claim) | claim
    missing = sorted(set(seeds) - {lap["seed"] for lap in entry["runs"]})
    if not missing:
        yield summary(entry["runs"], target)
        return
    for found in laps(missing):
        yield add_race_run(entry, found, out, target)


def add_race_run(
    entry: dict[str, Any], found: Lap, out: Path, target: float | None
) -> dict[str, Any]:
    """Put a lap into its ledger entry, write the entry to `out`, return its summary."""
    entry["runs"].append(found)
    entry["summary"] = summary(entry["runs"], target)
    write_bytes(out, (json.dumps(entry, indent=1) + "\n").encode())
    return dict(entry["summary"])


def read_entry(out: Path, claim: dict[str, Any]) -> dict[str, Any]:
    """The ledger entry that a race goes on with; an empty one where there is no file."""
    if not out.exists():
        return {"runs": []}
    try:
        entry: dict[str, Any] = json.loads(out.read_text())
        mine = from_dict(claim["recipe"])
        fits = [matches_run(lap, replace(mine, seed=lap["seed"])) for lap in entry["runs"]]
        counted = entry["counted"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out} is no ledger entry of a race: name another file") from None
    if counted != claim["counted"]:
        raise UserError(f"{out} holds laps counted {counted}: name another file")
    if not all(fits):
        raise UserError(f"{out} holds laps of another recipe: name another file")
    return entry


def summary(laps: list[Lap], target: float | None = None) -> dict[str, Any]:
    """n, mean and sample deviation of each figure, and the share of seeds that reach `target`."""
    figures: dict[str, Any] = {"n": len(laps)}
    if target is not None:
        reached = sum(lap["accuracy_tta"] >= target for lap in laps)
        figures |= {"target": target, "reached": reached / len(laps)}
    for key in SUMMED:
        values = [lap[key] for lap in laps if lap.get(key) is not None]
        if values:
            figures[key] = mean_sd(values)
    return figures
