"""A campaign: many trainings from one plan, several at once, stopped in time, resumable."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from leanres.errors import UserError
from leanres.runs.layout import INFO, METRICS, read_info
from leanres.runs.stop import Stop
from leanres.training.recipe import Recipe, from_dict, matches_run
from leanres.trials.race import add_race_run, read_entry, read_race_run

COUNTED = "campaign: other trainings ran beside it, and it may have been resumed"
POLL_S = 0.2


@dataclass(frozen=True)
class Row:
    """One line of a plan: a recipe and its seeds. `words` are what `leanres train` is told."""

    name: str
    recipe: Recipe
    words: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    measure: str = "test"


@dataclass
class Job:
    """One training of a campaign; its run folder knows how far it is."""

    row: Row
    seed: int
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    told: bool = False  # to stop

    @property
    def name(self) -> str:
        """The run folder's name: the row's, and the seed."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where its progress and complaints go."""
        return self.folder.with_name(f"{self.name}.log")

    def finished(self) -> bool:
        """Whether it is measured as the plan asks. UserError where the folder is another run's."""
        if not (self.folder / INFO).exists():
            return False
        info = read_info(self.folder)
        if not matches_run(info, from_dict({"seed": self.seed}, self.row.recipe)):
            raise UserError(f"{self.folder} holds a run of another recipe: give another --runs")
        return (info.get("result") or {}).get("split") == self.row.measure

    def epochs_done(self) -> int:
        """How many epochs are behind it."""
        file = self.folder / METRICS
        return len(file.read_text().splitlines()) if file.exists() else 0

    def start(self, words: Sequence[str]) -> None:
        """Begin or resume it in a process of its own, which no Ctrl-C but ours reaches."""
        if (self.folder / INFO).exists():
            told = ["resume", str(self.folder)]
        else:
            told = ["train", *self.row.words, "--seed", str(self.seed), "--out", str(self.folder)]
        command = [*told, "--measure", self.row.measure, "--no-report", "--json", *words]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "leanres", *command],
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@dataclass(frozen=True)
class Event:
    """What happened to a job; `detail` in words where it failed or stopped."""

    kind: Literal["begun", "resumed", "finished", "stopped", "failed"]
    job: Job
    detail: str = ""
    result: dict[str, Any] | None = None


def jobs_of(rows: Sequence[Row], runs: Path) -> list[Job]:
    """Every training of the plan: the first seed of each row in its order, then the second, ..."""
    ranked = zip_longest(*(row.seeds for row in rows))
    return [
        Job(row, seed, runs / f"{row.name}-{seed}")
        for seeds in ranked
        for row, seed in zip(rows, seeds, strict=True)
        if seed is not None
    ]


def campaign(
    jobs: Sequence[Job],
    results: Path,
    at_once: int,
    seconds: float = float("inf"),
    words: Sequence[str] = (),
) -> Iterator[Event]:
    """Train the jobs that are not finished, in order, `at_once` at a time, for so many seconds.

    Then, or at Ctrl-C or SIGTERM, the running ones are told to save and stop; the same call goes
    on with them. A finished one is in `results`/ROW.json at once. A job that fails does not stop
    the others. Each process gets `words` too. The iterator ends by Stopped where a signal
    came. UserError, before anything runs, where a run folder or a ledger entry holds
    something else.
    """
    for job in jobs:
        if job.finished():
            _record(job, results)
        else:
            _entry(job.row, results)
    waiting = deque(job for job in jobs if not job.finished())
    running: list[Job] = []
    until = time.monotonic() + seconds
    try:
        with Stop() as stop:
            while running or waiting:
                if stop.signal or time.monotonic() > until:
                    waiting.clear()
                    _stop(running)
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    begun = (job.folder / INFO).exists()
                    job.start(words)
                    running.append(job)
                    yield Event("resumed" if begun else "begun", job)
                for job in [job for job in running if _process(job).poll() is not None]:
                    running.remove(job)
                    yield _ended(job, results)
                time.sleep(POLL_S)
    finally:  # where the caller gave up on us
        _stop(running)
    stop.check()


def _stop(running: Sequence[Job]) -> None:
    """Tell each once; it saves between two steps."""
    for job in running:
        if not job.told:
            job.told = True
            _process(job).terminate()


def _process(job: Job) -> subprocess.Popen[bytes]:
    assert job.process is not None
    return job.process


def _ended(job: Job, results: Path) -> Event:
    code = _process(job).returncode
    if code == 0 and job.finished():
        return Event("finished", job, result=_record(job, results))
    if code in (130, 143, -15):
        done = job.epochs_done()
        return Event("stopped", job, f"{done} of {job.row.recipe.epochs} epochs are behind it")
    return Event("failed", job, f"it ended with {code}: {job.last_words()}")


def _entry(row: Row, results: Path) -> tuple[Path, dict[str, Any]]:
    """The row's ledger file and what is in it. UserError where that is something else."""
    out = results / f"{row.name}.json"
    claim = {
        "command": shlex.join(["leanres", "train", *row.words]),
        "counted": COUNTED,
        "recipe": row.recipe.to_dict(),
    }
    return out, read_entry(out, claim) | claim


def _record(job: Job, results: Path) -> dict[str, Any]:
    """Put a finished job into its row's ledger entry; its result."""
    out, entry = _entry(job.row, results)
    lap = read_race_run(job.folder)
    if all(known["seed"] != job.seed for known in entry["runs"]):
        out.parent.mkdir(parents=True, exist_ok=True)
        add_race_run(entry, lap, out, None)
    return lap
