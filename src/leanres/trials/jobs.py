"""Job: one training and its run folder. run_jobs: many of them, on any executor."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import LOCK, LOCK_WAIT_S, Lock
from leanres.runs.layout import INFO, METRICS, check_data, is_queued, read_info
from leanres.runs.run import complete, enqueue, reopen
from leanres.runs.stop import Stop, Stopped
from leanres.training.device import Device
from leanres.training.loop import TrainState
from leanres.training.recipe import Recipe, matches_run

if TYPE_CHECKING:
    from leanres.trials.executors import Executor

Kind = Literal["started", "resumed", "retried", "finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Job:
    """One training. Its run folder is the truth: it says how far the training is.

    `origin` says where the data is and how to measure, as `runs.run.enqueue` documents it. With
    `until_epoch` the job ends there, and another job may continue the run. While an `exclusive` job
    runs, because it is timed, no other does.
    """

    recipe: Recipe
    folder: Path
    origin: dict[str, Any] = field(default_factory=dict)
    until_epoch: int | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Event:
    """What happened to a job; `result` is run.json's, empty where `until_epoch` came first."""

    kind: Kind
    job: Job
    detail: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def is_loss(self) -> bool:
        """Whether the job ended without a result."""
        return self.kind in ("stopped", "diverged", "failed")


def is_finished(job: Job, dataset: Dataset | None = None) -> bool:
    """Whether the job's run is complete and measured as the job wants.

    UserError where the folder holds a run of another recipe, or, with `dataset`, of other data, and
    where `dataset` has no images to measure on.
    """
    measure = job.origin.get("measure", "test")
    if dataset is not None:
        there = {"test": dataset.test is not None, "val": bool(dataset.val or job.recipe.val)}
        if not there[measure]:
            raise UserError(f"measure {measure}: there are no such images; give test or val")
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
    finished = is_finished(job)
    if not (job.folder / INFO).exists():
        enqueue(job.folder, job.recipe, job.origin)
    return finished


def train(
    job: Job,
    load: Callable[[dict[str, Any]], Dataset],
    device: Callable[[dict[str, Any]], Device],
    halted: Callable[[], bool],
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a job whose run folder exists in this process; its result.

    Once `halted`, called after each step, is true, the run is saved and Stopped is raised, as by
    SIGTERM. `load` and `device` are `reopen`'s; `log` receives notes and a line per epoch.
    """
    # A process whose parent was killed holds the folder until its next step.
    lock = FileLock(job.folder / LOCK, timeout=LOCK_WAIT_S)
    with contextlib.suppress(Timeout, OSError, NotImplementedError), lock:
        pass
    if halted():
        raise Stopped(signal.SIGTERM)
    run = reopen(job.folder, load, device)
    run.info["origin"] |= job.origin
    for note in run.notes:
        log(f"note: {note}")

    def watch(state: TrainState) -> None:
        if halted():
            signal.raise_signal(signal.SIGTERM)

    def on_epoch(row: dict[str, Any]) -> None:
        log("  ".join(f"{key} {value:.6g}" for key, value in row.items()))

    return complete(run, watch, on_epoch, job.until_epoch)


def run_jobs(
    jobs: Iterable[Job] | Callable[[], Job | None], executor: Executor, deadline: float = math.inf
) -> Generator[Event, None, None]:
    """Run the jobs in order, as many at once as the executor has slots; yield what happens.

    Instead of a list, `jobs` may be a function that returns the next job, or None where there is
    none now: it is called whenever a slot is free, and the end has come when it returns None and
    nothing runs. At `deadline` (of time.monotonic), Ctrl-C or SIGTERM the running jobs save and
    stop; a signal then raises Stopped. A job that fails does not stop the others.
    """
    take = jobs if callable(jobs) else partial(next, iter(jobs), None)
    job: Job | None = None
    with Stop() as stop:

        def halted() -> bool:
            return bool(stop.signal) or time.monotonic() > deadline

        try:
            while True:
                while not halted() and _has_slot(executor) and (job := job or take()):
                    if job.exclusive and executor.running:
                        break
                    yield _begin(job, executor)
                    job = None
                if not executor.running:
                    break
                if halted():
                    executor.stop()
                for event in executor.events(halted):
                    _clean(event)
                    yield event
        finally:  # the caller may have abandoned this iterator
            executor.stop()
    stop.check()


def _has_slot(executor: Executor) -> bool:
    exclusive = any(job.exclusive for job in executor.running)
    return len(executor.running) < executor.slots and not exclusive


def _begin(job: Job, executor: Executor) -> Event:
    if ensure(job):
        return Event("finished", job, result=read_info(job.folder)["result"])
    event = Event("started" if _is_queued(job) else "resumed", job)
    executor.submit(job)
    return event


def _clean(event: Event) -> None:
    """Remove the folder of a job that was lost before it began: it holds nothing but the recipe."""
    if event.is_loss and _is_queued(event.job):
        with contextlib.suppress(UserError):  # another process holds it
            lock = Lock(event.job.folder)
            shutil.rmtree(event.job.folder, ignore_errors=True)
            lock.release()


def _is_queued(job: Job) -> bool:
    return is_queued(read_info(job.folder, queued=True))


def stopped(job: Job) -> Event:
    """The event of a job that saved and stopped."""
    file = job.folder / METRICS
    done = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
    return Event("stopped", job, f"{done} of {job.recipe.epochs} epochs are done")
