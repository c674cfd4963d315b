"""A campaign: the jobs of a plan, each finished one entered in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leanres.trials.compare import to_rows
from leanres.trials.entry import add_run, read_entry, read_run
from leanres.trials.executors import Executor
from leanres.trials.jobs import Event, Job, is_finished, run_jobs
from leanres.trials.plan import PlanRow

COUNTED = "campaign: other trainings ran beside it, and it may have been resumed"


def campaign(
    planned: Sequence[tuple[PlanRow, Job]],
    results: Path,
    executor: Executor,
    command: str,
    deadline: float = math.inf,
) -> Iterator[Event]:
    """Train the jobs that are not finished, as `run_jobs` does; yield what happens.

    A finished job is in `results`/ROW.json at once, whose header names `command`. UserError, before
    anything runs, where a run folder or a ledger entry holds something else.
    """
    entries = {job.folder: _entry(row, results, command) for row, job in planned}
    for out, header in entries.values():
        read_entry(out, header)
    left = [job for _, job in planned if not is_finished(job)]
    for folder in entries.keys() - {job.folder for job in left}:
        add_run(*entries[folder], read_run(folder))
    for event in run_jobs(left, executor, deadline):
        if event.kind == "finished":
            add_run(*entries[event.job.folder], read_run(event.job.folder))
        yield event


def _entry(row: PlanRow, results: Path, command: str) -> tuple[Path, dict[str, Any]]:
    """The row's ledger file and its header."""
    header = {"command": command, "counted": COUNTED, "recipe": row.recipe.to_dict()}
    return results / f"{row.name}.json", header


def summary_rows(rows: Sequence[PlanRow], results: Path, measure: str) -> list[dict[str, Any]]:
    """`trials.compare.to_rows` of the ledger entries that are measured on this split."""
    entries = {row.name: read_entry(*_entry(row, results, "")) for row in rows}
    measured = {row.name: entries[row.name]["runs"] for row in rows if row.measure == measure}
    return to_rows({name: runs for name, runs in measured.items() if runs})
