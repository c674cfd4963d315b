"""Job: one training and its run folder. run_jobs: many of them, on any executor."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import Lock
from leanres.runs.images import check_data
from leanres.runs.layout import read_history
from leanres.runs.run import enqueue
from leanres.runs.run_json import INFO, is_queued, matches_run, read_info
from leanres.runs.stop import Stop
from leanres.training.recipe import Recipe

Kind = Literal[
    "started", "resumed", "lost", "retried", "finished", "stopped", "diverged", "failed", "in use"
]


@dataclass(frozen=True)
class Job:
    """One training. Its run folder is the truth: it says how far the training is.

    `origin` says where the data is and how to measure, as `runs.run.enqueue` documents it. With
    `until_epoch` the job ends there, and another job may continue the run.
    """

    recipe: Recipe
    folder: Path
    origin: dict[str, Any] = field(default_factory=dict)
    until_epoch: int | None = None


@dataclass(frozen=True)
class Event:
    """What happened to a job. "in use": another process trains in its folder.

    "lost": its process or machine has died. An executor says so, and `run_jobs` makes "retried" or
    "failed" of it. `seconds` is what its process took, where the job had one.
    """

    kind: Kind
    job: Job
    detail: str = ""
    seconds: float | None = None

    @property
    def is_loss(self) -> bool:
        """Whether the job ended without a result."""
        return self.kind in ("stopped", "diverged", "failed", "in use")


Losses = dict[Path, tuple[int, int]]  # run folder -> epochs done at its last loss, losses since


class Executor(Protocol):
    """Runs jobs whose run folders exist, up to `slots` at once, for `run_jobs`.

    A lost job is tried again `retries` times, counted from its last new epoch.
    """

    slots: int
    retries: int

    @property
    def running(self) -> Sequence[Job]:
        """The jobs that were submitted and whose end has not been yielded."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        """Losses and ends since the last call, after a wait for the first of them.

        An executor that cannot return before a job has ended stops the job once `halted`.
        """

    def stop(self) -> None:
        """Tell the running jobs to save and stop; their ends are events."""


def is_finished(job: Job, dataset: Dataset | None = None) -> bool:
    """Whether the job's run is complete and measured as the job wants.

    UserError where the folder holds a run of another recipe, or, with `dataset`, of other data, and
    where `dataset` has no images to measure on.
    """
    measure = job.origin.get("measure", "test")
    if dataset is not None:
        there = {"test": dataset.test is not None, "val": bool(dataset.val or job.recipe.val)}
        if not there[measure]:
            raise UserError(f"measure {measure}: the data has no such split; give test or val")
    if not (job.folder / INFO).exists():
        return False
    info = read_info(job.folder, queued=True)
    if not matches_run(info, job.recipe):
        raise UserError(f"{job.folder} holds a run of another recipe: name another folder")
    if dataset is not None and not is_queued(info):
        check_data(job.folder, info, dataset)
    return bool(info.get("result", {}).get("split") == measure)


def ensure(job: Job) -> bool:
    """Whether the job's run is finished already; its folder is created where there is none."""
    if not (job.folder / INFO).exists():
        try:
            enqueue(job.folder, job.recipe, job.origin)
        except UserError:
            if not (job.folder / INFO).exists():  # no other process was quicker
                raise
    return is_finished(job)


def run_jobs(
    jobs: Iterable[Job] | Callable[[], Job | None], executor: Executor, deadline: float = math.inf
) -> Generator[Event, None, None]:
    """Run the jobs in order, as many at once as the executor has slots; yield what happens.

    Instead of a list, `jobs` may be a function that returns the next job, or None where there is
    none now: it is called whenever a slot is free, and the end has come when it returns None and
    nothing runs. At `deadline` (of time.monotonic), Ctrl-C or SIGTERM the running jobs save and
    stop; a signal then raises Stopped. A job that fails does not stop the others. One whose process
    or machine was lost is tried again, as often as the executor says.
    """
    take = jobs if callable(jobs) else partial(next, iter(jobs), None)
    losses: Losses = {}
    with Stop() as stop:

        def halted() -> bool:
            return bool(stop.signal) or time.monotonic() > deadline

        try:
            while True:
                while len(executor.running) < executor.slots and not halted() and (job := take()):
                    yield _begin(job, executor)
                if not executor.running:
                    break
                if halted():
                    executor.stop()
                for event in executor.events(halted):
                    if event.kind == "lost":
                        event = stopped(event.job) if halted() else _retry(event, executor, losses)
                    _clean(event)
                    yield event
        finally:  # the caller may have abandoned this iterator
            executor.stop()
    stop.check()


def _begin(job: Job, executor: Executor) -> Event:
    if ensure(job):
        return Event("finished", job)
    event = Event("started" if _is_queued(job) else "resumed", job)
    executor.submit(job)
    return event


def _retry(event: Event, executor: Executor, losses: Losses) -> Event:
    """Submit a lost job again; "failed" where it was lost too often without a new epoch."""
    job = event.job
    done = len(read_history(job.folder)[0])
    before, count = losses.get(job.folder, (done, 0))
    count = count + 1 if done == before else 1
    if count > executor.retries:
        return replace(event, kind="failed")
    losses[job.folder] = done, count
    executor.submit(job)
    return replace(event, kind="retried")


def _clean(event: Event) -> None:
    """Remove the folder of a job that was lost before it began: it holds nothing but the recipe."""
    with contextlib.suppress(UserError):  # another process holds it, or has removed it
        if event.is_loss and _is_queued(event.job):
            lock = Lock(event.job.folder)
            shutil.rmtree(event.job.folder, ignore_errors=True)
            lock.release()


def _is_queued(job: Job) -> bool:
    return is_queued(read_info(job.folder, queued=True))


def stopped(job: Job) -> Event:
    """The event of a job that saved and stopped."""
    done = len(read_history(job.folder)[0])
    return Event("stopped", job, f"{done} of {job.recipe.epochs} epochs are done")
