"""Architecture search under a budget: Optuna proposes, successive halving on val decides.

Networks are proposed by Optuna's TPE sampler (`pip install 'leanres[search]'`) and stopped early by
successive halving (Li et al. 2018, arXiv:1810.05934). The study is OUT/study.log, each
network's run OUT/NAME, so a killed search continues. Several processes may share the work:

    trial asked of Optuna -> job to the first rung -> reported -> pruned, or promoted to the next
    rung -> ... -> job to the last epoch -> complete

The study is read and changed under its lock. Each process also holds a lock of its own, which its
trials name: a running trial whose owner's lock is free has lost its process and is taken over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import InUseError, lock_file, locked, read_file, toml_value, write_bytes
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_to_dict
from leanres.runs.layout import CHECKPOINTS, read_history
from leanres.training.early_stopping import best_epoch
from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import RECIPES
from leanres.trials.jobs import Event, Executor, Job, run_jobs
from leanres.trials.proposals import Bounds, propose

if TYPE_CHECKING:
    import optuna

STUDY, BEST = "study.log", "best.toml"
HAND_MADE = {"stages": 3, "depth_0": 3, "depth_1": 3, "depth_2": 3, "block": "basic", "growth": 2.0}
PATIENCE = 300  # proposals in a row that are out of bounds or known, before the search gives up
REDUCTION = 3  # one network in three is promoted to the next rung, of three times the epochs
POLL_S = 1.0  # between looks at the networks that other processes train


@dataclass(frozen=True)
class Candidate:
    """A network that was tried: what it costs, and how far its training got."""

    name: str
    model: dict[str, Any]
    params: int
    macs: int
    receptive_field: int
    epochs: int
    accuracy: float  # on val, of the last epoch, or with keep_best of the best
    finished: bool  # False: stopped by successive halving, or diverged


def search(
    bounds: Bounds,
    recipe: Recipe,
    dataset: Dataset,
    executor: Executor,
    folder: Path,
    trials: int = 20,
    seed: int = 0,
    origin: dict[str, Any] | None = None,
    watch: Callable[[Candidate], None] = lambda candidate: None,
) -> list[Candidate]:
    """Try networks until `trials` have been trained or stopped early; all of them, best first.

    `origin` says where processes find the data (`data.sources.locate`). `watch` receives each
    network that ends here. Interrupted, the same call continues, within a training too. Other
    processes may search in the same folder: each trains some of the networks, and all return the
    same list. UserError where `folder` holds another search or nothing is within the bounds.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search needs Optuna: pip install 'leanres[search]'")
    if not recipe.val and dataset.val is None:
        raise UserError("a search chooses on val images, and there are none: --set val=0.1")
    if recipe.stop_after:
        raise UserError("a search stops networks itself, on its rungs: leave out stop_after")
    own = (origin or {}) | {"measure": "val", "tta": "none"}
    owner = folder / uuid.uuid4().hex
    searcher = _Searcher(folder, bounds, recipe, dataset, own, trials, seed, owner.name)
    try:
        with locked(owner):
            while len(searcher.candidates()) < trials:
                with contextlib.closing(run_jobs(searcher.next_job, executor)) as events:
                    for candidate in filter(None, map(searcher.end, events)):
                        watch(candidate)
                if len(searcher.candidates()) < trials:
                    time.sleep(POLL_S)  # other processes train the rest
    finally:
        lock_file(owner).unlink(missing_ok=True)
    return searcher.candidates()


def pareto_front(tried: list[Candidate]) -> list[Candidate]:
    """The finished ones that no other beats in both accuracy and MACs, cheapest first."""
    front: list[Candidate] = []
    for c in sorted((c for c in tried if c.finished), key=lambda c: (c.macs, -c.accuracy)):
        if not front or c.accuracy > front[-1].accuracy:
            front.append(c)
    return front


def write_best(folder: Path, best: Candidate, recipe: Recipe, base: str) -> Path:
    """Write the best network in `recipe` as a recipe file, changes to the recipe `base` alone."""
    known, plain = RECIPES[base].to_dict(), config_to_dict(ResNetConfig())
    changed = {k: v for k, v in recipe.to_dict().items() if v != known[k]}
    changed["model"] = {k: v for k, v in best.model.items() if k == "family" or v != plain[k]}
    lines = [f"{key} = {toml_value(value)}\n" for key, value in ({"base": base} | changed).items()]
    write_bytes(folder / BEST, "".join(lines).encode())
    return folder / BEST


@dataclass
class _Searcher:
    """What this process does of a search: some trials of a study that all processes share."""

    folder: Path
    bounds: Bounds
    recipe: Recipe
    dataset: Dataset
    origin: dict[str, Any]
    trials: int
    seed: int
    owner: str  # name of this process's lock
    study: optuna.Study = field(init=False)
    live: dict[Path, optuna.Trial] = field(default_factory=dict)  # by run folder
    waiting: deque[Job] = field(default_factory=deque)  # to be continued here

    def __post_init__(self) -> None:
        asked: dict[str, Any] = {"bounds": asdict(self.bounds), "recipe": self.recipe.to_dict()}
        asked["data"] = self.dataset.train.fingerprint
        with _locked_study(self.folder):
            self.study = _open_study(self.folder, json.loads(json.dumps(asked)))

    def candidates(self) -> list[Candidate]:
        """Every network that has ended, here or in another process, best first."""
        ended = [Candidate(**t.user_attrs["candidate"]) for t in self._trials("candidate")]
        return sorted(ended, key=lambda c: (c.finished, c.accuracy), reverse=True)

    def next_job(self) -> Job | None:
        """A job to continue, what a dead process left, or a new network.

        None where all the networks that are wanted have ended or are being trained.
        """
        if self.waiting:
            return self.waiting.popleft()
        for _ in range(PATIENCE):
            with _locked_study(self.folder):
                trial = self._abandoned()
                if trial is None:
                    if len(self._trials("network")) >= self.trials:
                        return None
                    trial = self.study.ask()
                trial.set_user_attr("owner", self.owner)
                if "network" in trial.user_attrs or self._propose(trial):
                    return self._job(trial)
        raise UserError(
            f"{PATIENCE} proposals in a row were out of bounds or known: widen the bounds"
            " or lower --multiple"
        )

    def end(self, event: Event) -> Candidate | None:
        """Tell the study what became of a network; the candidate where it has ended."""
        import optuna

        job = event.job
        if event.kind == "failed":
            raise UserError(f"{job.folder}: {event.detail}")
        if event.kind in ("stopped", "in use"):
            self.waiting.append(job)
        if event.kind not in ("finished", "diverged"):
            return None
        (rows, _), trial = read_history(job.folder), self.live[job.folder]
        kept = best_epoch(rows) if self.recipe.keep_best else len(rows)
        accuracy = rows[kept - 1]["val_accuracy"] if rows else 0.0  # it diverged in its first epoch
        finished = len(rows) == self.recipe.epochs
        network = trial.user_attrs["network"]
        candidate = Candidate(**network, epochs=len(rows), accuracy=accuracy, finished=finished)
        with _locked_study(self.folder):
            at_rung = event.kind == "finished" and not finished
            if at_rung and self._is_promoted(trial, accuracy, len(rows)):
                trial.set_user_attr("rung", len(rows))
                self.waiting.append(self._job(trial))
                return None
            trial.set_user_attr("candidate", asdict(candidate))
            state = optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.PRUNED
            self.study.tell(trial, accuracy if finished else None, state)
        if not finished:  # after the study knows: a killed search may need them
            shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)
        return candidate

    def _is_promoted(self, trial: optuna.Trial, accuracy: float, epochs: int) -> bool:
        """Report a network's accuracy; whether it is in the best third that reached this rung.

        Asked again after a kill, the answer is the same, which Optuna's own pruner's is not.
        """
        trials = self.study.get_trials(deepcopy=False)
        others = [t.intermediate_values for t in trials if t.number != trial.number]
        reached = [accuracy, *(values[epochs] for values in others if epochs in values)]
        if epochs not in trials[trial.number].intermediate_values:
            trial.report(accuracy, epochs)
        return accuracy >= sorted(reached, reverse=True)[max(1, len(reached) // REDUCTION) - 1]

    def _trials(self, attribute: str) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if attribute in t.user_attrs]

    def _abandoned(self) -> optuna.Trial | None:
        """A running trial whose process has died."""
        import optuna

        running = (optuna.trial.TrialState.RUNNING,)
        for known in self.study.get_trials(deepcopy=False, states=running):
            owner = known.user_attrs.get("owner")  # None: killed right after asking
            if owner is None or _is_free(self.folder / owner):
                return optuna.Trial(self.study, known._trial_id)
        return None

    def _propose(self, trial: optuna.Trial) -> bool:
        """Give the trial a network; False, and the trial has failed, where it would not be new."""
        import optuna

        # Seeded by the trial's number: the proposals do not depend on which process asks.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + trial.number)
        found = propose(trial, self.bounds, self.dataset.train)
        known = {t.user_attrs["network"]["name"] for t in self._trials("network")}
        if found is None or (name := _name(found[0])) in known:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return False
        counts = {key: getattr(found[1], key) for key in ("params", "macs", "receptive_field")}
        network = {"name": name, "model": config_to_dict(found[0])} | counts
        trial.set_user_attr("network", network)
        return True

    def _job(self, trial: optuna.Trial) -> Job:
        """The job to the trial's next rung, or to its end."""
        network = trial.user_attrs["network"]
        place = self.folder / network["name"]
        self.live[place] = trial
        if not (place / CHECKPOINTS).exists():  # the study has lost its end: it begins again
            shutil.rmtree(place, ignore_errors=True)
        until = next_rung(self.recipe.epochs, trial.user_attrs.get("rung", 0))
        return Job(from_dict({"model": network["model"]}, self.recipe), place, self.origin, until)


def first_rung(epochs: int) -> int:
    """The epoch after which the worse two thirds of the networks are stopped."""
    return max(1, epochs // REDUCTION)


def next_rung(epochs: int, done: int) -> int | None:
    """The first rung after `done` epochs: each is three times the last. None: train to the end."""
    rung = first_rung(epochs)
    while rung <= done:
        rung *= REDUCTION
    return rung if rung < epochs else None


@contextlib.contextmanager
def _locked_study(folder: Path) -> Iterator[None]:
    """Lock the study; a last line that a kill or a full disk cut off is dropped first."""
    path = folder / STUDY
    with locked(path):
        if path.exists() and not (lines := read_file(path)).endswith(b"\n"):
            os.truncate(path, lines.rfind(b"\n") + 1)
        yield


def _open_study(folder: Path, asked: dict[str, Any]) -> optuna.Study:
    """The folder's study; a new one proposes the shape that one would choose by hand first.

    UserError where it is damaged, or of something else than what is `asked`.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = folder / STUDY
    # The study's own lock would outlive a killed process by half a minute; ours is held already.
    journal = JournalFileBackend(str(path), lock_obj=threading.Lock())  # type: ignore[arg-type]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            direction="maximize",
            study_name="search",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError):  # a line is not JSON, or not one of Optuna's
        raise UserError(f"{path} is damaged: give another --out") from None
    if not study.user_attrs:
        study.set_user_attr("asked", asked)
    elif study.user_attrs != {"asked": asked}:
        raise UserError(
            f"{folder} holds a search with other bounds, recipe or data: give another --out"
        )
    if not study.trials:
        study.enqueue_trial(HAND_MADE)
    return study


def _name(config: ResNetConfig) -> str:
    """Its run folder: "basic-3x3x3-64x128x216"."""
    return "-".join(
        [config.block, *("x".join(map(str, x)) for x in (config.depths, config.widths))]
    )


def _is_free(owner: Path) -> bool:
    """Whether the process that held this lock has ended; its lock file is then removed."""
    try:
        with locked(owner, wait_s=0):
            pass
    except InUseError:
        return False
    lock_file(owner).unlink()
    return True
