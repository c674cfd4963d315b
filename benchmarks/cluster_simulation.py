"""10,000 trainings on 512 machines that fail, on a simulated clock: nothing lost, nothing twice.

    python benchmarks/cluster_simulation.py [--jobs 10000] [--machines 512] [--rate 0.01] [--seed 0]

The trainings are stand-ins; what runs them is real: `trials.jobs.run_jobs` with its retries, run
folders and their run.json, and in the second part `trials.search.search` with its study. A machine
fails at a rate per hour and is replaced after ten minutes; its job loses what it did since its last
epoch. The command itself is killed too, and started again. A few jobs kill every machine they are
on. The figures go to results/bench/cluster-simulation.json.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.io import write_bytes
from leanres.models.budget import parse_budget
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import config_to_dict, fitted, resolve
from leanres.runs.fit import fit
from leanres.runs.layout import CHECKPOINTS, HISTORY, commit, read_history
from leanres.runs.run_json import INFO, read_info
from leanres.training.device import CPU, hardware
from leanres.training.recipe import Recipe
from leanres.trials.cluster import Ray
from leanres.trials.jobs import Event, Job, run_jobs
from leanres.trials.proposals import Bounds
from leanres.trials.search import search

OUT = Path(__file__).resolve().parents[1] / "results" / "bench" / "cluster-simulation.json"
REPLACED_H = 1 / 6  # until a failed machine is there again
EPOCHS = 9
RECIPE = Recipe(model=SpeedNetConfig((8,)), epochs=EPOCHS, batch_size=200, val=200)


class Killed(Exception):
    """The command was killed: what it had running saves and stops."""


@dataclass
class Machines:
    """The cluster: it outlives the commands. Hours are simulated."""

    number: int
    rate: float  # failures per machine and hour
    rng: random.Random
    finished: dict[str, Any]  # what a finished run's run.json holds beside recipe and origin
    poisoned: Set[str] = frozenset()  # run folders whose job kills its machine
    hour: float = 0.0
    busy_hours: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)  # times that a job was trained to its end
    losses: Counter[str] = field(default_factory=Counter)

    def hours_of(self, job: Job) -> float:
        """Of an epoch: three minutes to half an hour, the same each time."""
        return random.Random(job.folder.name).uniform(0.05, 0.5)

    def keep(self, job: Job, epochs: int) -> None:
        """Write what a run folder holds after so many epochs."""
        (job.folder / CHECKPOINTS).mkdir(exist_ok=True)
        luck = random.Random(f"accuracy {job.folder.name}").random()
        rows = [{"epoch": i, "val_accuracy": luck * i / EPOCHS} for i in range(1, epochs + 1)]
        (job.folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows))
        if epochs == job.recipe.epochs:
            network = config_to_dict(fitted(resolve(job.recipe.model), 10, 3))
            own = {"recipe": job.recipe.to_dict(), "origin": job.origin, "network": network}
            (job.folder / INFO).write_text(json.dumps(self.finished | own))


class Simulated:
    """An executor on these machines, as Ray is. After `killed_at` hours its command is dead."""

    retries = Ray.retries

    def __init__(self, machines: Machines, killed_at: float = float("inf")) -> None:
        self.machines, self.killed_at = machines, killed_at
        self.slots, self._free, self._order = machines.number, machines.number, count()
        self._queue: deque[Job] = deque()
        self._on: dict[Path, float] = {}  # the jobs that are on a machine, since which hour
        self._next: list[tuple[float, int, str, Job | None]] = []

    @property
    def running(self) -> list[Any]:
        return [*self._on, *self._queue]

    def submit(self, job: Job) -> None:
        assert job.folder not in self._on, f"{job.folder} would run twice at once"
        assert job not in self._queue
        self._queue.append(job)
        self._place()

    def _place(self) -> None:
        while self._free and self._queue:
            job, m = self._queue.popleft(), self.machines
            self._free -= 1
            self._on[job.folder] = m.hour
            left = (job.until_epoch or job.recipe.epochs) - len(read_history(job.folder)[0])
            end, fails = left * m.hours_of(job), m.rng.expovariate(m.rate)
            if job.folder.name in m.poisoned:
                fails = m.hours_of(job) / 2
            kind = "lost" if fails < end else "finished"
            heapq.heappush(self._next, (m.hour + min(end, fails), next(self._order), kind, job))

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        hour, _, kind, job = heapq.heappop(self._next)
        m = self.machines
        if hour > self.killed_at:
            self._die()
        m.hour = hour
        self._free += kind != "lost"
        if job is None:  # a machine was replaced
            self._place()
            return
        worked = hour - self._on.pop(job.folder)
        m.busy_hours += worked
        if kind == "lost":
            m.losses[job.folder.name] += 1
            heapq.heappush(self._next, (hour + REPLACED_H, next(self._order), "replaced", None))
            m.keep(job, len(read_history(job.folder)[0]) + int(worked / m.hours_of(job)))
            yield Event("lost", job, "its machine was lost")
        else:
            m.ends[f"{job.folder.name} {job.until_epoch}"] += 1
            m.keep(job, job.until_epoch or job.recipe.epochs)
            yield Event("finished", job, seconds=3600 * worked)
        self._place()

    def _die(self) -> None:
        """The trainings of a dead command end with the epoch that they have saved."""
        m = self.machines
        m.hour = self.killed_at
        for _, _, _, job in self._next:
            if job:
                worked = m.hour - self._on[job.folder]
                m.busy_hours += worked
                m.keep(job, len(read_history(job.folder)[0]) + int(worked / m.hours_of(job)))
        raise Killed

    def stop(self) -> None:
        """Nothing to tell: the command has ended, or was killed."""


def finished_run(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """run.json of a real training of a second, but for its recipe, which every job replaces."""
    fit(folder, replace(RECIPE, epochs=1), dataset, CPU("cpu", "float32", compiled=False))
    return read_info(folder)


def until_done(m: Machines, killed_every_h: float, run: Callable[[Simulated], Any]) -> int:
    """Give the command again whenever it was killed; how often that was."""
    for kills in count():
        with contextlib.suppress(Killed):
            run(Simulated(m, m.hour + killed_every_h))
            return kills
    raise AssertionError


def trainings(m: Machines, jobs: list[Job], killed_every_h: float) -> dict[str, Any]:
    """All jobs, through `run_jobs`: what became of them."""
    kinds: Counter[str] = Counter()
    last: dict[str, str] = {}

    def run(executor: Simulated) -> None:
        for event in run_jobs(jobs, executor):
            kinds[event.kind] += 1
            last[event.job.folder.name] = event.kind

    kills = until_done(m, killed_every_h, run)
    names = [job.folder.name for job in jobs]
    needed = sum(EPOCHS * m.hours_of(job) for job in jobs if job.folder.name not in m.poisoned)
    return {
        "jobs": len(jobs),
        "finished": sum(last.get(name) == "finished" for name in names),
        "failed": sorted(name for name in names if last.get(name) == "failed"),
        "trained_to_the_end_twice": sum(times > 1 for times in m.ends.values()),
        "machines_lost": m.losses.total(),
        "retried": kinds["retried"],
        "most_losses_of_a_job_that_finished": max(
            (n for name, n in m.losses.items() if name not in m.poisoned), default=0
        ),
        "commands_killed": kills,
        "simulated_hours": round(m.hour, 2),
        "machine_hours": round(m.busy_hours),
        "machine_hours_without_failures": round(needed),
    }


def searching(
    m: Machines, dataset: Dataset, folder: Path, trials: int, killed_every_h: float
) -> dict[str, Any]:
    """A search with successive halving through `search`: what became of its networks."""
    bounds = Bounds(parse_budget("200k"), 1)
    found: list[Any] = []

    def run(executor: Simulated) -> None:
        found[:] = search(bounds, RECIPE, dataset, executor, folder, trials)

    kills = until_done(m, killed_every_h, run)
    return {
        "networks": len(found),
        "different": len({c.name for c in found}),
        "finished": sum(c.finished for c in found),
        "rungs_trained_twice": sum(times > 1 for times in m.ends.values()),
        "machines_lost": m.losses.total(),
        "commands_killed": kills,
        "simulated_hours": round(m.hour, 2),
    }


def plan(folder: Path, jobs: int, poisoned: int, rng: random.Random) -> tuple[list[Job], set[str]]:
    """So many jobs, and the names of those that kill their machine."""
    many = [Job(replace(RECIPE, seed=i), folder / f"job-{i}") for i in range(jobs)]
    return many, {job.folder.name for job in rng.sample(many, poisoned)}


def simulate(
    folder: Path, jobs: int, machines: int, rate: float, seed: int, trials: int
) -> dict[str, Any]:
    """Both parts in `folder`; the figures, which depend on the seed alone."""
    dataset = load_data("digits")
    finished, rng = finished_run(dataset, folder / "template"), random.Random(seed)
    many, poisoned = plan(folder, jobs, 5, rng)
    done = trainings(Machines(machines, rate, rng, finished, poisoned), many, killed_every_h=12.0)
    other = Machines(machines // 8, 10 * rate, rng, finished)
    found = searching(other, dataset, folder / "search", trials, killed_every_h=3.0)
    return {"trainings": done, "search": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("jobs", 10_000), ("machines", 512), ("seed", 0), ("trials", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=0.01)
    asked = vars(parser.parse_args())
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").exists() else None
    ) as place:
        began = time.perf_counter()
        figures = simulate(Path(place), **asked)
        seconds = round(time.perf_counter() - began, 1)
    about = {"asked": asked, "seconds": seconds, "cpu_seconds": round(time.process_time(), 1)}
    about["commit"] = commit()
    about["hardware"] = hardware(CPU("cpu", "float32", compiled=False))
    write_bytes(OUT, (json.dumps(about | figures, indent=1) + "\n").encode())
    print(json.dumps(figures, indent=1), f"{seconds} s", sep="\n")


if __name__ == "__main__":
    main()
