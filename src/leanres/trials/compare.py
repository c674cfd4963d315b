"""Comparisons: variants of one recipe trained with the same seeds; their paired differences."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from leanres.data.sources import origin_of
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.metrics.statistics import mean_sd, paired_seeds
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import resolve
from leanres.registry import Table
from leanres.runs.run_json import INFO
from leanres.training.device import Device, detect
from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import BUDGET_AUGMENT, CROP_FLIP, CUTOUT, RECIPES
from leanres.trials.executors import InProcess
from leanres.trials.jobs import Event, Executor, Job, is_finished, run_jobs
from leanres.trials.ledger_entry import read_run

PREFIX = "compare-"  # of the folders that comparisons train into by default


@dataclass(frozen=True)
class Comparison:
    """Variants of the recipe `base`: name -> settings. The first variant is the baseline.

    A setting may be a function of the network that all variants start from. `reported` is what
    the source of the comparison found: test accuracy in percent, at its own length and size.
    """

    question: str
    variants: dict[str, dict[str, Any]]
    reported: dict[str, float]
    base: str = "resnet26-97"


# resnet26-97 at a quarter of its widths: a sixteenth of its MACs.
SMALL = ResNetConfig((32, 25, 41, 50), (3, 3, 3, 3), init="kaiming")


def _shape(**changed: Any) -> dict[str, Any]:
    return {"model": lambda network: replace(network, **changed)}


def _depth(*depths: int) -> dict[str, Any]:
    return _shape(depths=depths)


def _shaken(network: ResNetConfig) -> ResNetConfig:
    # Two branches at 1 / sqrt(2) of the width have the same parameters.
    widths = tuple(round(width / math.sqrt(2)) for width in network.widths)
    return replace(network, block="shake", widths=widths)


def _augmented(name: str) -> dict[str, Any]:
    return {"augment": ((name, {}), *CROP_FLIP, CUTOUT)}


COMPARISONS: Table[Comparison] = Table(
    "comparison",
    {
        "optimizers": Comparison(
            "which optimizer, under one cosine",
            {
                "sgd": {"optimizer": "sgd", "lr": 0.1},
                "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0},
                "adamw": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05},
                "adadelta": {"optimizer": "adadelta", "lr": 0.1},
            },
            {"sgd": 97.12, "adamw": 96.57, "adadelta": 96.04},
        ),
        "schedules": Comparison(
            "cosine, or the rate divided by ten at each third",
            {"cosine": {"schedule": "cosine"}, "step": {"schedule": "step"}},
            {"cosine": 97.12, "step": 92.0},
        ),
        "augmentations": Comparison(
            "what each augmentation adds",
            {
                "flip + crop": {"augment": CROP_FLIP},
                "+ auto_augment": {"augment": BUDGET_AUGMENT[:-1]},
                "+ perspective": {"augment": BUDGET_AUGMENT},
            },
            {"flip + crop": 93.76, "+ auto_augment": 95.34, "+ perspective": 97.12},
        ),
        "depths": Comparison(
            "how many blocks in each stage",
            {
                "3,3,3,3": _depth(3, 3, 3, 3),
                "3,3,2,3": _depth(3, 3, 2, 3),
                "2,2,2,2": _depth(2, 2, 2, 2),
            },
            {"3,3,3,3": 97.12, "3,3,2,3": 96.84, "2,2,2,2": 90.0},
        ),
        "elements": Comparison(
            "what each element of a strong recipe adds; sam, asam and 2 repeats cost twice as much",
            {
                "crop + flip": {"augment": CROP_FLIP},
                "auto_augment, cutout": _augmented("auto_augment"),
                "trivial_augment, cutout": _augmented("trivial_augment"),
                "rand_augment, cutout": _augmented("rand_augment"),
                "cutmix": {"augment": CROP_FLIP, "mix": ["cutmix"]},
                "ricap": {"augment": CROP_FLIP, "mix": ["ricap"]},
                "2 repeats, cutmix": {
                    "augment": CROP_FLIP,
                    "mix": ["cutmix"],
                    "augment_repeats": 2,
                },
                "label smoothing": {"augment": CROP_FLIP, "label_smoothing": 0.1},
                "average": {"augment": CROP_FLIP, "ema": 0.99},
                "sam": {"augment": CROP_FLIP, "sam_rho": 0.05},
                "asam": {"augment": CROP_FLIP, "sam_rho": 0.5, "sam_adaptive": True},
                "squeeze": {"augment": CROP_FLIP, **_shape(squeeze=8)},
                "stochastic depth": {"augment": CROP_FLIP, **_shape(drop_path=0.1)},
                "pre-activation": {"augment": CROP_FLIP, **_shape(block="wide")},
                "shake-shake": {"augment": CROP_FLIP, "model": _shaken},
            },
            {},
        ),
    },
)


def recipes(comparison: Comparison, changes: dict[str, Any]) -> dict[str, Recipe]:
    """The recipe of each variant; `changes` (epochs, model, ...) hold for all of them."""
    small = {"model": SMALL, "epochs": 6, "val": 0.1} | changes
    network = resolve(from_dict({"model": small["model"]}).model)
    chosen = {}
    for name, settings in comparison.variants.items():
        own = {k: v for k, v in settings.items() if not callable(v)}
        both = sorted(set(own) & set(changes))
        if both:
            raise UserError(f"the variants differ in {', '.join(both)}: leave it out of --set")
        if len(own) < len(settings) and not isinstance(network, ResNetConfig):
            raise UserError(f"variant {name!r} changes a residual network: give one as the model")
        try:
            own |= {k: change(network) for k, change in settings.items() if callable(change)}
        except UserError as error:
            raise UserError(f"variant {name!r} does not fit that model: {error}") from None
        chosen[name] = from_dict(_with_steps(small | own), RECIPES[comparison.base])
    return chosen


def _with_steps(settings: dict[str, Any]) -> dict[str, Any]:
    # Steps at thirds of this training, not of the source's 300 epochs.
    if settings.get("schedule") == "step":
        third = max(1, math.ceil(settings["epochs"] / 3))
        return settings | {"schedule": ("step", {"every_epochs": third})}
    return settings


def compare(
    comparison: Comparison,
    dataset: Dataset,
    executor: Executor,
    folder: Path,
    seeds: Sequence[int],
    changes: dict[str, Any],
    *,
    measure: str = "val",
    origin: Mapping[str, Any] = {},
    watch: Callable[[Event], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Train each variant with each seed into `folder`/VARIANT-SEED; their rows, as `to_rows`.

    Finished runs are kept, also those of a comparison beside `folder`; interrupted ones continue.
    `origin` says where processes find the data (`data.sources.locate`); `watch` is called with each
    event. Stopped where a signal came; UserError where there are no images to measure on, before
    any training, and where a training failed, after the others. Nothing is reported of networks
    of another family.
    """
    variants = recipes(comparison, changes)
    jobs = _jobs(variants, seeds, folder, {**origin, "measure": measure})
    found = {key: _where_finished(job, dataset) for key, job in jobs.items()}
    is_known = isinstance(resolve(next(iter(variants.values())).model), ResNetConfig)
    reported = comparison.reported if is_known else {}
    return to_rows(_finished_runs(found, executor, watch), reported)


def compare_recipes(
    variants: Mapping[str, Recipe],
    dataset: Dataset,
    folder: Path | str,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    measure: str = "val",
    device: Device | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Train recipes of one's own with the same seeds in this process: rows and errors as `compare`.

    The first variant is the one that the others are compared with, paired by the seeds.
    """
    first = next(iter(variants.values()), None)
    if first is None or not seeds:
        raise UserError("nothing to compare: give recipes by name, and seeds")
    device = device or detect("auto", first.precision, first.compiled)
    device.tune()
    jobs = _jobs(variants, seeds, Path(folder), {"measure": measure} | origin_of(dataset))
    for job in jobs.values():
        is_finished(job, dataset)  # a mistake is refused before any training
    return to_rows(_finished_runs(jobs, InProcess(dataset, device), watch))


def _jobs(
    variants: Mapping[str, Recipe], seeds: Sequence[int], folder: Path, origin: dict[str, Any]
) -> dict[tuple[str, int], Job]:
    # Only the final accuracy counts, so val is not measured after every epoch.
    own = origin | {"tta": "none", "validate": False}
    jobs = {}
    for seed, (name, recipe) in product(seeds, variants.items()):  # complete pairs exist early
        jobs[name, seed] = Job(replace(recipe, seed=seed), folder / f"{_slug(name)}-{seed}", own)
    return jobs


def _finished_runs(
    jobs: Mapping[tuple[str, int], Job], executor: Executor, watch: Callable[[Event], None]
) -> dict[str, list[dict[str, Any]]]:
    """Run the jobs; the run of each seed by variant. UserError where one ended without a result."""
    lost = []
    for event in run_jobs(jobs.values(), executor):
        watch(event)
        if event.is_loss:
            lost.append(f"{event.job.folder} {event.kind}: {event.detail}")
    if lost:
        raise UserError(f"{len(lost)} of {len(jobs)} are without a result; {lost[0]}")
    runs: dict[str, list[dict[str, Any]]] = {}
    for (name, _), job in jobs.items():
        runs.setdefault(name, []).append(read_run(job.folder))
    return runs


def _where_finished(job: Job, dataset: Dataset) -> Job:
    """The job in the folder of another comparison that has finished it; else the job as it is."""
    if is_finished(job, dataset) or (job.folder / INFO).exists():
        return job
    for other in sorted(job.folder.parent.parent.glob(f"{PREFIX}*/*/{INFO}")):
        with contextlib.suppress(UserError):  # another recipe, or other data
            if is_finished(there := replace(job, folder=other.parent), dataset):
                return there
    return job


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").replace("---", "-")


def to_rows(
    runs: Mapping[str, list[dict[str, Any]]], reported: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """One JSON-able row per variant, from its runs: accuracy by seed, mean, sd (None for one seed).

    The later rows also have the `difference` from the first one, paired by the seeds of both.
    """
    rows: list[dict[str, Any]] = []
    for name, made in runs.items():
        accuracies = {run["seed"]: run["accuracy"] for run in made}
        row: dict[str, Any] = {
            "variant": name,
            "accuracies": accuracies,
            "reported": (reported or {}).get(name),
        }
        row |= {"runs": made} | mean_sd(list(accuracies.values()))
        if rows and (shared := [seed for seed in rows[0]["accuracies"] if seed in accuracies]):
            first = [rows[0]["accuracies"][seed] for seed in shared]
            d = paired_seeds(first, [accuracies[seed] for seed in shared])
            facts = {"half_width": d.half_width, "n": d.n, "verdict": d.verdict}
            row["difference"] = {"mean": d.difference} | facts
        rows.append(row)
    return rows
