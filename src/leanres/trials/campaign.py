"""A campaign: a plan (TOML, a table per recipe) of many trainings, entered in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from leanres.errors import UserError
from leanres.io import read_toml
from leanres.registry import unknown
from leanres.training.recipe import Recipe, parse_setting
from leanres.training.recipes import load_recipe
from leanres.trials.compare import to_rows
from leanres.trials.jobs import Event, Executor, Job, is_finished, run_jobs
from leanres.trials.ledger_entry import add_run, read_entry, read_run

COUNTED = "campaign: other trainings ran beside it, and it may have been resumed"
KEYS = ["recipe", "seeds", "set", "measure"]


@dataclass(frozen=True)
class PlanRow:
    """One table of a plan: a recipe, the seeds to train it with, what to measure on."""

    name: str
    recipe: Recipe
    seeds: tuple[int, ...] = (0,)
    measure: str = "test"


def read_plan(plan: Path, settings: Sequence[str] = ()) -> list[PlanRow]:
    """The rows of a plan, all of them checked; `settings` ("epochs=1") come after each row's own.

    A table is [NAME] with the keys recipe (default: NAME), seeds, set and measure. UserError for a
    mistake in it.
    """
    tables = read_toml(plan)
    if not tables:
        raise UserError(f"{plan} has no rows: give a table per recipe, as [speed]")
    return [_row(f"[{name}] in {plan}", name, table, settings) for name, table in tables.items()]


def _row(label: str, name: str, table: Any, more: Sequence[str]) -> PlanRow:
    if not isinstance(table, dict):
        raise UserError(f"{label} is not a table: give [{name}]")
    if Path(name).name != name:
        raise UserError(f"{label}: give a name that can be a file's")
    for key in table:
        if key not in KEYS:
            raise UserError(f"{label}: {unknown('key', key, KEYS)}")
    seeds, settings = table.get("seeds", [0]), table.get("set", [])
    recipe, measure = table.get("recipe", name), table.get("measure", "test")
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{label}: seeds = {seeds}: give different whole numbers")
    if not isinstance(settings, list) or not all(isinstance(text, str) for text in settings):
        raise UserError(f'{label}: set = {settings}: give strings, as in ["epochs=2"]')
    if not isinstance(recipe, str):
        raise UserError(f"{label}: recipe = {recipe!r}: give the name of a recipe")
    if measure not in ("test", "val"):
        raise UserError(f"{label}: measure = {measure!r}: give test or val")
    changes = dict(map(parse_setting, (*settings, *more)))
    return PlanRow(name, load_recipe(recipe, changes), tuple(seeds), measure)


def plan_jobs(
    rows: Sequence[PlanRow], runs: Path, origin: dict[str, Any]
) -> list[tuple[PlanRow, Job]]:
    """Every training of the plan: the first seed of each row in order, then the second, ..."""
    return [
        (row, _job(row, seed, runs, origin))
        for seeds in zip_longest(*(row.seeds for row in rows))
        for row, seed in zip(rows, seeds, strict=True)
        if seed is not None
    ]


def _job(row: PlanRow, seed: int, runs: Path, origin: dict[str, Any]) -> Job:
    recipe = replace(row.recipe, seed=seed)
    return Job(recipe, runs / f"{row.name}-{seed}", origin | {"measure": row.measure})


def campaign(
    planned: Sequence[tuple[PlanRow, Job]],
    results: Path,
    executor: Executor,
    command: str,
    deadline: float = math.inf,
) -> Iterator[Event]:
    """Run the jobs as `run_jobs` does; yield what happens.

    A finished job is in `results`/ROW.json at once, whose header names `command`. UserError, before
    anything runs, where a run folder or a ledger entry holds something else.
    """
    entries = {job.folder: _entry(row, results, command) for row, job in planned}
    for _, job in planned:
        read_entry(*entries[job.folder])
        is_finished(job)
    for event in run_jobs([job for _, job in planned], executor, deadline):
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
