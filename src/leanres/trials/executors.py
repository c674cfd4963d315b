"""Executors: where jobs run. In this process, or each in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from leanres import plugins
from leanres.data.split import Dataset
from leanres.runs.stop import Stopped
from leanres.training.device import Device, detect
from leanres.training.recipe import Recipe
from leanres.trials.jobs import Event, Executor, Job, stopped
from leanres.trials.node import last_line
from leanres.trials.worker import EXIT_CODES, train

POLL_S = 0.2


class InProcess:
    """One job at a time in this process, on data that is loaded once."""

    slots = 1
    retries = 0  # what kills the job kills this process

    def __init__(self, dataset: Dataset, device: Device) -> None:
        self.dataset, self.device = dataset, device
        self.running: list[Job] = []

    def submit(self, job: Job) -> None:
        self.running.append(job)

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        job, began = self.running.pop(), time.perf_counter()
        try:
            event = train(job, lambda _: self.dataset, lambda _: self.device, halted)
            event = replace(event, seconds=time.perf_counter() - began)
        except Stopped as error:
            if not halted():
                signal.raise_signal(error.number)  # it came from outside: for run_jobs too
            event = stopped(job)
        yield event

    def stop(self) -> None:
        """Nothing to tell: `events` stops a job that is halted."""


@dataclass
class _Child:
    """A process that runs a job."""

    job: Job
    device: str
    process: subprocess.Popen[bytes]
    logged: int  # bytes that its log had before it started
    began: float  # by time.perf_counter
    stopping: bool = False  # it was told to


class LocalProcesses:
    """Each job in a process of its own on this machine, on the least busy of `devices`.

    A job writes to a log file beside its run folder. `threads` are the CPU threads of a job; 0: its
    share of the cores, or with one slot what its run had before, else all. A job whose process was
    killed by a signal, not by us, is lost.
    """

    retries = 1

    def __init__(
        self, slots: int = 1, devices: Sequence[str] = ("auto",), threads: int = 0
    ) -> None:
        self.slots, self.devices = slots, devices
        share = max(1, (os.cpu_count() or 1) // slots) if slots > 1 else 0
        self.threads = threads or share
        self._children: list[_Child] = []

    @property
    def running(self) -> Sequence[Job]:
        return [child.job for child in self._children]

    def submit(self, job: Job) -> None:
        busy = [child.device for child in self._children]
        device = min(self.devices, key=busy.count)
        command = [sys.executable, *worker_arguments(job, device, self.threads)]
        began = time.perf_counter()
        with log_file(job).open("ab") as log:
            logged = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # it closes with this process, which tells the child
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches it through `stop` alone
            )
        self._children.append(_Child(job, device, process, logged, began))

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._children[0].process.wait(POLL_S)
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            seconds = time.perf_counter() - child.began
            if child.process.stdin:
                child.process.stdin.close()
            line = last_line(log_file(child.job), child.logged)
            yield ended(child.job, child.process.returncode, line, seconds, child.stopping)

    def stop(self) -> None:
        for child in self._children:
            if not child.stopping:
                child.stopping = True
                child.process.terminate()


def worker_arguments(job: Job, device: str, threads: int, wait_s: float = 0.0) -> list[str]:
    """What Python is given to run the job in a process of its own; `wait_s` as `worker.train`."""
    options = {
        "origin": job.origin | {"device": device, "threads": threads},
        "until_epoch": job.until_epoch,
        "plugins": plugins.to_load(),
        "wait_s": wait_s,
    }
    return ["-m", "leanres.trials.worker", str(job.folder), json.dumps(options)]


def ended(job: Job, code: int, line: str, seconds: float, told: bool) -> Event:
    """The event of a process that ended with this code and last line; `told` to stop or not."""
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) or (told and code < 0):
        return stopped(job)
    if code < 0:
        return Event("lost", job, f"signal {-code} killed its process: {line}", seconds)
    kinds = {number: kind for kind, number in EXIT_CODES.items()}
    kind = kinds.get(code, "failed")
    if kind == "finished":
        return Event(kind, job, seconds=seconds)
    how = f"it ended with {code}: " if kind == "failed" else ""
    return Event(kind, job, how + line, seconds)


def log_file(job: Job) -> Path:
    """Where a job's process writes its progress and errors."""
    return job.folder.with_name(f"{job.folder.name}.log")


def local_executor(
    dataset: Dataset, recipe: Recipe, devices: Sequence[str], at_once: int = 0, threads: int = 0
) -> Executor:
    """Processes on these devices, or this process where one job runs at a time.

    `at_once` 0 means one job per device. UserError for a device that is not usable here.
    """
    found = [detect(name, recipe.precision, recipe.compiled) for name in devices]
    slots = at_once or len(found)
    if slots > 1:
        return LocalProcesses(slots, devices, threads)
    if threads:
        torch.set_num_threads(threads)
    found[0].tune()
    return InProcess(dataset, found[0])
