"""COMPARISONS: variants of one recipe, trained with the same seeds; their paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scipy import stats

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import resolve
from leanres.registry import Table
from leanres.runs import run as runs
from leanres.runs.layout import INFO, check_data, read_info
from leanres.runs.stop import Stop
from leanres.training.device import Device
from leanres.training.loop import TrainState
from leanres.training.recipe import Recipe, from_dict, matches_run
from leanres.training.recipes import BUDGET_AUGMENT, CROP_FLIP, HOLE, RECIPES

PREFIX = "compare-"  # of the folders that comparisons train into by default


@dataclass(frozen=True)
class Comparison:
    """Variants (name -> settings over `base`), the first of them the yardstick.

    A setting may be a function of the network that all variants begin with. `reported` is what
    the source of the comparison found, test accuracy in percent at its own length and size.
    """

    question: str
    variants: dict[str, dict[str, Any]]
    reported: dict[str, float]
    base: str = "resnet26-97"


@dataclass(frozen=True)
class Outcome:
    """What came of a variant: accuracies (shares) by seed, and against the yardstick, paired."""

    variant: str
    accuracies: dict[int, float]
    reported: float | None
    runs: list[dict[str, Any]] = field(default_factory=list)  # of each: seed, commit, machine, ...
    mean: float = field(init=False)
    sd: float | None = field(init=False)  # of the sample; None for one seed

    def __post_init__(self) -> None:
        values = list(self.accuracies.values())
        object.__setattr__(self, "mean", statistics.fmean(values))
        object.__setattr__(self, "sd", statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences of two variants, its standard error times t, and n."""

    mean: float
    half_width: float | None  # of the 95 % interval of Student's t; None for one pair
    n: int

    @property
    def verdict(self) -> str:
        """In words, whether the difference is one."""
        if self.half_width is None:
            return "n = 1: no spread known"
        if abs(self.mean) <= self.half_width:
            return f"not distinguishable at n = {self.n}"
        return "better" if self.mean > 0 else "worse"


# A quarter of resnet26-97's widths: a sixteenth of its arithmetic, the same shape.
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
    return {"augment": ((name, {}), *CROP_FLIP, HOLE)}


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
    small = {"model": SMALL, "epochs": 6, "val": 5000} | changes
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
        chosen[name] = from_dict(_fitted(small | own), RECIPES[comparison.base])
    return chosen


def _fitted(settings: dict[str, Any]) -> dict[str, Any]:
    # Thirds of this training, not of the source's 300 epochs.
    if settings.get("schedule") == "step":
        third = max(1, math.ceil(settings["epochs"] / 3))
        return settings | {"schedule": ("step", {"every_epochs": third})}
    return settings


def compare(
    comparison: Comparison,
    dataset: Dataset,
    device: Device,
    folder: Path,
    seeds: list[int],
    changes: dict[str, Any],
    measure_on: str = "val",
    watch: Callable[[Path, str, int, bool], None] = lambda place, variant, seed, done: None,
) -> list[Outcome]:
    """Train each variant with each seed into `folder`/variant-seed; finished runs are kept.

    One that a comparison beside `folder` has trained already is taken from there. `watch` gets
    the run folder, the variant, the seed, and whether it is finished. Interrupted, it goes on
    where it stopped. Stopped where a signal came; UserError, before any training, where there are
    no images to measure on.
    """
    chosen = recipes(comparison, changes)
    held_out = dataset.val is not None or all(recipe.val for recipe in chosen.values())
    if not {"test": dataset.test is not None, "val": held_out}.get(measure_on):
        raise UserError(f"measure {measure_on}: there are no such images; give test or val")
    job, reported = _Job(folder, dataset, device, measure_on), comparison.reported
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in seeds:  # seed by seed, so that a table of whole pairs exists early
        for name, recipe in chosen.items():
            mine = from_dict({"seed": seed}, recipe)
            place, done = job.finished(f"{_slug(name)}-{seed}", mine)
            watch(place, name, seed, done)
            if not done:
                job.train(place, mine)
            found[name].append(_facts(read_info(place)))
    return [
        Outcome(name, {run["seed"]: run["accuracy"] for run in made}, reported.get(name), made)
        for name, made in found.items()
    ]


def _facts(info: dict[str, Any]) -> dict[str, Any]:
    """What a claim that rests on this run has to say of it."""
    result = {key: info["result"][key] for key in ("split", "accuracy", "n", "train_seconds")}
    return {
        "seed": info["recipe"]["seed"],
        **result,
        **{key: info[key] for key in ("commit", "started", "hardware", "recipe")},
    }


@dataclass(frozen=True)
class _Job:
    """What all trainings of a comparison share."""

    folder: Path
    dataset: Dataset
    device: Device
    measure_on: str

    def finished(self, name: str, recipe: Recipe) -> tuple[Path, bool]:
        """Where the run is, or is to be; whether it is finished. UserError: another is there."""
        place = self.folder / name
        if (place / INFO).exists():
            info = read_info(place)
            if not matches_run(info, recipe):
                raise UserError(f"{place} holds a run of another recipe: give another --out")
            check_data(place, info, self.dataset)
            return place, self._measured(info)
        for other in sorted(self.folder.parent.glob(f"{PREFIX}*/*/{INFO}")):
            info = read_info(other.parent)
            if matches_run(info, recipe) and self._measured(info) and self._same_data(other, info):
                return other.parent, True
        return place, False

    def _measured(self, info: dict[str, Any]) -> bool:
        return (info.get("result") or {}).get("split") == self.measure_on

    def _same_data(self, place: Path, info: dict[str, Any]) -> bool:
        try:
            return check_data(place, info, self.dataset)
        except UserError:
            return False

    def train(self, place: Path, recipe: Recipe) -> None:
        """Begin or go on, and measure."""
        if (place / INFO).exists():
            run = runs.reopen(place, lambda _: self.dataset, lambda _: self.device)
        else:
            run = runs.create(place, recipe, self.dataset, self.device)
        # Only the end counts; measured after every epoch, many held-out images cost as much again.
        held_out, run.val = run.val, None
        with Stop() as stop:
            for _ in runs.epochs(run, stop, _ignore):
                pass
        stop.check()
        run.val = held_out
        runs.finish(run, "none", self.measure_on)


def _ignore(state: TrainState) -> None:
    pass


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").replace("---", "-")


def differences(outcomes: list[Outcome]) -> dict[str, Difference]:
    """Each later variant against the first, paired by seed (shares)."""
    first = outcomes[0].accuracies
    return {
        o.variant: difference([o.accuracies[seed] - first[seed] for seed in first])
        for o in outcomes[1:]
    }


def difference(pairs: list[float]) -> Difference:
    """The mean of paired differences with its 95 % interval by Student's t."""
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0], None, n)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(pairs) / math.sqrt(n)
    return Difference(statistics.fmean(pairs), half, n)


def to_rows(outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    """One JSON-able row per variant, with its difference from the first."""
    against = differences(outcomes)
    for o in outcomes:
        d = against.get(o.variant)
        words = {} if d is None else {"difference": asdict(d) | {"verdict": d.verdict}}
        yield asdict(o) | words
