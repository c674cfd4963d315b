"""Architecture search under a budget: exact counts, successive halving on val, kept in a file.

Candidates are proposed by Optuna's TPE sampler (`pip install 'leanres[search]'`) and stopped early
by its successive-halving rule (Li et al. 2018, arXiv:1810.05934). Both live in OUT/study.log, each
candidate's run in OUT/NAME, so a killed search goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.models.cost import Summary, count_params, summarize
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_to_dict
from leanres.runs import run as runs
from leanres.runs.layout import CHECKPOINTS, INFO
from leanres.runs.stop import Stop
from leanres.training.device import Device
from leanres.training.recipe import Recipe, from_dict

if TYPE_CHECKING:
    import optuna

STUDY = "study.log"
NEAR = 0.99  # of the parameter budget is the least that a candidate uses
HAND_MADE = {"stages": 3, "depth_0": 3, "depth_1": 3, "depth_2": 3, "block": "basic", "growth": 2.0}
PATIENCE = 100  # proposals out of bounds in a row, before the bounds are called empty


@dataclass(frozen=True)
class Bounds:
    """What a candidate may cost. `params` is nearly used up: between 99 % of it and all of it."""

    params: int = 5_000_000
    macs: int | None = None  # at most, for one image
    receptive_field: tuple[int, int] = (1, 10**6)  # least and most, in pixels
    multiple: int = 8  # of channels: what matrix units are fed with

    def __post_init__(self) -> None:
        least, most = self.receptive_field
        if least > most:
            raise UserError(f"receptive field from {least} to {most} px: give the least first")

    def admits(self, summary: Summary) -> bool:
        """Whether a network keeps within all of them."""
        least, most = self.receptive_field
        return (
            NEAR * self.params <= summary.params <= self.params
            and (self.macs is None or summary.macs <= self.macs)
            and least <= summary.receptive_field <= most
        )


@dataclass(frozen=True)
class Candidate:
    """A network that was tried: what it costs, and how far its training got."""

    name: str
    model: dict[str, Any]
    params: int
    macs: int
    receptive_field: int
    epochs: int
    accuracy: float  # on val, after the last of the epochs
    finished: bool  # False: stopped by successive halving


def fit_widths(shape: ResNetConfig, growth: float, bounds: Bounds) -> ResNetConfig | None:
    """The widest network of this shape within the parameter budget; None where none is near it.

    Widths grow by about `growth` from stage to stage, in multiples of `bounds.multiple`.
    """
    step = bounds.multiple

    def sized(sixteenths: int) -> ResNetConfig:
        base = sixteenths / 16
        widths = (step * max(1, round(base * growth**i)) for i in range(len(shape.depths)))
        return replace(shape, widths=tuple(widths))

    sixteenths = 16
    while _params(sized(2 * sixteenths)) <= bounds.params:
        sixteenths *= 2
    # The largest that fits: params rise with the base, and twice this one is too large.
    above = bisect_right(
        range(sixteenths, 2 * sixteenths), bounds.params, key=lambda n: _params(sized(n))
    )
    first = sized(max(16, sixteenths + above - 1))
    stages = range(len(shape.depths))
    # One stage a step narrower frees what the rounding of all of them cannot use up.
    tries = [first, *(_widened(first, i, -step) for i in stages if first.widths[i] > step)]
    full = {_filled(config, bounds) for config in tries}
    fitting = [c for c in full if NEAR * bounds.params <= _params(c) <= bounds.params]
    return max(fitting, key=lambda c: (_params(c), c.widths), default=None)


def _filled(config: ResNetConfig, bounds: Bounds) -> ResNetConfig:
    """The config, its stages widened from the last one on as far as the budget goes."""
    for stage in reversed(range(len(config.widths))):
        while _params(wider := _widened(config, stage, bounds.multiple)) <= bounds.params:
            config = wider
    return config


def _widened(config: ResNetConfig, stage: int, step: int) -> ResNetConfig:
    widths = list(config.widths)
    widths[stage] += step
    return replace(config, widths=tuple(widths))


def _cost(config: ResNetConfig, train: Split) -> Summary:
    _, channels, height, width = train.images.shape
    return summarize(config, (channels, height, width))


@cache
def _params(config: ResNetConfig) -> int:
    return count_params(config)


def propose(trial: optuna.trial.BaseTrial, bounds: Bounds, train: Split) -> ResNetConfig | None:
    """A network for these images from a trial's choices; None where it is out of bounds."""
    stages = trial.suggest_int("stages", 3, 4)
    depths = tuple(trial.suggest_int(f"depth_{i}", 1, 6) for i in range(stages))
    block = trial.suggest_categorical("block", ["basic", "wide"])
    growth = trial.suggest_float("growth", 1.0, 2.2, step=0.1)
    shape = ResNetConfig(
        (bounds.multiple,) * stages, depths, block=block, num_classes=len(train.classes)
    )
    config = fit_widths(shape, growth, bounds)
    return config if config and bounds.admits(_cost(config, train)) else None


def search(
    bounds: Bounds,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    folder: Path,
    trials: int = 20,
    seed: int = 0,
    watch: Callable[[Candidate], None] = lambda candidate: None,
) -> list[Candidate]:
    """Try networks until `trials` have been trained or stopped; all of them, best first.

    `watch` sees each as it ends. Interrupted (KeyboardInterrupt), the same call goes on: within
    the running candidate too, from its checkpoint. UserError where `folder` holds another search
    or nothing is within the bounds.
    """
    _check_installed()
    if not recipe.val and dataset.val is None:
        raise UserError("a search chooses on val images, and there are none: --set val=5000")
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"bounds": asdict(bounds), "recipe": recipe.to_dict()}
    _check_same(folder, asked | {"data": dataset.train.fingerprint})
    study = _study(folder, recipe, seed)
    while len(_ended(study)) < trials:
        candidate = _try_one(study, bounds, recipe, dataset, device, folder)
        if candidate is not None:
            watch(candidate)
        elif _astray(study) >= PATIENCE:
            raise UserError(
                f"{PATIENCE} proposals in a row were out of bounds or known: widen the bounds"
            )
    return candidates(study)


def candidates(study: optuna.Study) -> list[Candidate]:
    """Everything a study has tried, each network once, best first."""
    found = {c.name: c for c in (Candidate(**t.user_attrs["candidate"]) for t in _ended(study))}
    return sorted(found.values(), key=lambda c: (c.finished, c.accuracy), reverse=True)


def pareto_front(tried: list[Candidate]) -> list[Candidate]:
    """The finished ones that no other beats in both accuracy and MACs, cheapest first."""
    front: list[Candidate] = []
    for c in sorted((c for c in tried if c.finished), key=lambda c: (c.macs, -c.accuracy)):
        if not front or c.accuracy > front[-1].accuracy:
            front.append(c)
    return front


def _check_installed() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search needs Optuna: pip install 'leanres[search]'")


def _check_same(folder: Path, asked: dict[str, Any]) -> None:
    """Keep what a folder searches for, and refuse to go on with something else in it."""
    path = folder / "search.json"
    text = json.dumps(asked, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"{folder} holds a search with other bounds, recipe or data: give another --out"
        )
    path.write_text(text)


def _study(folder: Path, recipe: Recipe, seed: int) -> optuna.Study:
    """The folder's study; what a killed process was trying is queued again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY))),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, recipe.epochs // 3), reduction_factor=3
            ),
            direction="maximize",
            study_name="search",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError):  # its own lines do not parse or do not fit
        raise UserError(f"{folder / STUDY} is damaged: give another --out") from None
    # Seeded anew by what it knows: a resumed search would propose its first networks again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    if not study.trials:  # so the best found is never behind the shape that one would take by hand
        study.enqueue_trial(HAND_MADE)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials whose network was trained to the end, or stopped by successive halving."""
    return [t for t in study.get_trials(deepcopy=False) if "candidate" in t.user_attrs]


def _astray(study: optuna.Study) -> int:
    """How many of the last trials in a row brought no network to train."""
    count = 0
    for trial in reversed(study.get_trials(deepcopy=False)):
        if "nothing new" not in trial.user_attrs:
            break
        count += 1
    return count


def _try_one(
    study: optuna.Study,
    bounds: Bounds,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    folder: Path,
) -> Candidate | None:
    """Train one network of the sampler's choice; None where it brings nothing new."""
    from optuna.trial import TrialState

    trial = study.ask()
    config = propose(trial, bounds, dataset.train)
    known = {c.name for c in candidates(study)}
    if config is None or _name(config) in known:
        trial.set_user_attr("nothing new", True)
        study.tell(trial, state=TrialState.FAIL)
        return None
    run = _open(folder / _name(config), from_dict({"model": config}, recipe), dataset, device)
    # A network that diverges is a bad one; the search goes on.
    with contextlib.suppress(runs.DivergedError):
        for row in _rows(run):
            trial.report(row["val_accuracy"], row["epoch"])
            if row["epoch"] < recipe.epochs and trial.should_prune():
                break
    candidate = _candidate(run, config)
    if candidate.finished and "result" not in run.info:
        runs.finish(run, "none", "val")
    trial.set_user_attr("candidate", asdict(candidate))
    state = TrialState.COMPLETE if candidate.finished else TrialState.PRUNED
    study.tell(trial, candidate.accuracy if candidate.finished else None, state)
    if not candidate.finished:  # last: a kill before it could not be resumed without them
        shutil.rmtree(run.folder / CHECKPOINTS)
    return candidate


def _name(config: ResNetConfig) -> str:
    """Its run folder: "basic-3x3x3-64x128x216"."""
    return "-".join(
        [config.block, *("x".join(map(str, x)) for x in (config.depths, config.widths))]
    )


def _open(place: Path, recipe: Recipe, dataset: Dataset, device: Device) -> runs.Run:
    if (place / INFO).exists():
        return runs.reopen(place, lambda _: dataset, lambda _: device)
    return runs.create(place, recipe, dataset, device)


def _rows(run: runs.Run) -> Iterator[dict[str, Any]]:
    """The epochs that are behind, then those ahead as they end. Stopped where a signal came."""
    yield from run.state.history[:]
    with Stop() as stop:
        for row in runs.epochs(run, stop, lambda state: None):
            if not stop.signal:  # else this network's fate waits for the next call
                yield row
    stop.check()


def _candidate(run: runs.Run, config: ResNetConfig) -> Candidate:
    cost, rows = _cost(config, run.setup.train), run.state.history
    accuracy = rows[-1]["val_accuracy"] if rows else 0.0  # none: it diverged in its first epoch
    return Candidate(
        name=run.folder.name,
        model=config_to_dict(config),
        params=cost.params,
        macs=cost.macs,
        receptive_field=cost.receptive_field,
        epochs=len(rows),
        accuracy=accuracy,
        finished=len(rows) == run.recipe.epochs,
    )
