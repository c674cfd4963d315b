"""Executors: where jobs run. In this process, or each in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanres import plugins
from leanres.data.split import Dataset
from leanres.io import read_file
from leanres.runs.stop import Stopped
from leanres.training.device import Device, detect
from leanres.training.recipe import Recipe
from leanres.trials.jobs import Event, Executor, Job, stopped
from leanres.trials.worker import EXIT_CODES, train

POLL_S = 0.2


class InProcess:
    """One job at a time in this process, on data that is loaded once."""

    slots = 1

    def __init__(self, dataset: Dataset, device: Device) -> None:
        self.dataset, self.device = dataset, device
        self.running: list[Job] = []

    def submit(self, job: Job) -> None:
        self.running.append(job)

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        job = self.running.pop()
        try:
            event = train(job, lambda _: self.dataset, lambda _: self.device, halted)
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
    retried: bool
    logged: int  # bytes that its log had before it started
    stopping: bool = False  # it was told to


class LocalProcesses:
    """Each job in a process of its own on this machine, on the least busy of `devices`.

    A job writes to a log file beside its run folder. `threads` are the CPU threads of a job; 0: its
    share of the cores, or with one slot what its run had before, else all. A job whose process was
    killed by a signal, not by us, is tried once more.
    """

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

    def submit(self, job: Job, retried: bool = False) -> None:
        busy = [child.device for child in self._children]
        device = min(self.devices, key=busy.count)
        origin = job.origin | {"device": device, "threads": self.threads}
        options = {
            "origin": origin,
            "until_epoch": job.until_epoch,
            "plugins": plugins.to_load(),
        }
        command = [sys.executable, "-m", "leanres.trials.worker", str(job.folder)]
        with log_file(job).open("ab") as log:
            logged = log.tell()
            process = subprocess.Popen(
                [*command, json.dumps(options)],
                stdin=subprocess.PIPE,  # it closes with this process, which tells the child
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches it through `stop` alone
            )
        self._children.append(_Child(job, device, process, retried, logged))

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._children[0].process.wait(POLL_S)
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            event = _ended(child)
            if child.process.stdin:
                child.process.stdin.close()
            if event.kind == "retried":
                self.submit(child.job, retried=True)
            yield event

    def stop(self) -> None:
        for child in self._children:
            if not child.stopping:
                child.stopping = True
                child.process.terminate()


def _ended(child: _Child) -> Event:
    job, code = child.job, child.process.returncode
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) or (child.stopping and code < 0):
        return stopped(job)
    if code < 0 and not child.retried:
        return Event("retried", job, f"signal {-code} killed its process")
    kinds = {number: kind for kind, number in EXIT_CODES.items()}
    kind = kinds.get(code, "failed")
    if kind == "finished":
        return Event(kind, job)
    ended = f"it ended with {code}: " if kind == "failed" else ""
    return Event(kind, job, ended + _last_line(child))


def log_file(job: Job) -> Path:
    """Where a job's process writes its progress and errors."""
    return job.folder.with_name(f"{job.folder.name}.log")


def _last_line(child: _Child) -> str:
    """The last line of the process; earlier ones, which may have been killed, wrote there too.

    Without the name of the program, which begins the lines that tell an error.
    """
    own = read_file(log_file(child.job))[child.logged :]
    lines = own.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    return last.removeprefix("leanres: ")


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
