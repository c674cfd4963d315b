"""`leanres campaign`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import (
    DEVICE,
    PATH,
    SIZE,
    STRICT,
    changes,
    load_dataset,
    to_argv,
    with_tta,
)
from leanres.errors import UserError
from leanres.registry import unknown

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.trials.jobs import Event, Job, Row

KEYS = ["recipe", "seeds", "set", "measure"]


def campaign(
    plan: Path = typer.Argument(metavar="PLAN", help="A TOML file: a table per recipe."),
    at_once: int = typer.Option(1, min=1, help="Trainings that run beside each other."),
    settings: list[str] = typer.Option(
        [], "--set", help="A setting for every row, as a rehearsal wants: --set epochs=1."
    ),
    minutes: float = typer.Option(0, min=0, help="Then save and stop; 0: run to the end."),
    runs: Path = typer.Option(Path("runs"), help="Folder of the run folders and their logs."),
    results: Path = typer.Option(Path("results"), help="Folder of the ledger entries."),
    weights: Path = typer.Option(
        Path("weights"), help="Folder of the first seeds' weights, each with its card."
    ),
    data: str = typer.Option("cifar10", help="cifar10, digits, or a folder with one per class."),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    device_name: str = DEVICE,
    threads: int = typer.Option(0, min=0, help="CPU threads each; 0: its share of the cores."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per event."),
) -> None:
    """Train a plan's recipes, several at once: first seeds first; stopped, it goes on.

    A plan has one table per recipe: [NAME], with recipe = "..." (else NAME), seeds = [0, 1],
    set = ["epochs=2"] and measure = "val" where they are wanted.
    """
    from leanres.runs.layout import INFO, check_data, read_info
    from leanres.training.device import detect
    from leanres.trials import jobs as campaigns

    options = {"data": data, "path": path, "size": size, "strict": strict}
    rows = _rows(plan, options, settings)
    jobs = campaigns.jobs_of(rows, runs)
    dataset, where = load_dataset(data, path, size, strict), detect(device_name).name
    for job in jobs:
        if (job.folder / INFO).exists():
            check_data(job.folder, read_info(job.folder), dataset)
    left = sum(not job.finished() for job in jobs)
    typer.echo(
        f"{plan}: {len(jobs)} trainings, {len(jobs) - left} finished; {at_once} at once,"
        f" progress in {runs}/*.log",
        err=as_json,
    )
    share = max(1, (os.cpu_count() or 1) // at_once)  # of the cores, else they fight for all
    own = to_argv([], device=device_name, threads=threads or (share if at_once > 1 else None))
    failed = 0
    for job in jobs:  # finished earlier, but its card, which comes last, was not written
        lacks = not (weights / f"{job.row.name}.md").exists()
        if lacks and job.finished() and (kept := _keep(job, weights, dataset, where)):
            typer.echo(f"finished {job.name}{kept}", err=as_json)
    limit = 60 * minutes or float("inf")
    for event in campaigns.campaign(jobs, results, at_once, limit, own):
        failed += event.kind == "failed"
        done = event.kind == "finished"
        kept = _keep(event.job, weights, dataset, where) if done else ""
        if as_json:
            typer.echo(json.dumps({"event": event.kind, "run": str(event.job.folder)}))
        else:
            typer.echo(f"{event.kind:8} {event.job.name}{_told(event)}{kept}")
    count = sum(job.finished() for job in jobs)
    again = "" if count == len(jobs) else "; the same command goes on"
    typer.echo(f"{count} of {len(jobs)} trainings finished{again}", err=as_json)
    if failed:
        raise typer.Exit(1)


def _rows(plan: Path, options: dict[str, Any], more: Sequence[str] = ()) -> list[Row]:
    """The plan's rows, each checked whole before anything is trained."""
    try:
        tables = tomllib.loads(plan.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{plan} is not TOML: {error}") from None
    if not tables:
        raise UserError(f"{plan} has no rows: give a table per recipe, as [speed]")
    if more:
        tables = {name: _with(table, more) for name, table in tables.items()}
    return [_row(plan, name, table, options) for name, table in tables.items()]


def _with(table: Any, more: Sequence[str]) -> Any:
    """The row with settings of the command line after its own, where both are lists."""
    own = table.get("set", []) if isinstance(table, dict) else None
    return table | {"set": [*own, *more]} if isinstance(own, list) else table


def _row(plan: Path, name: str, table: Any, options: dict[str, Any]) -> Row:
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe
    from leanres.trials.jobs import Row

    if not isinstance(table, dict):
        raise UserError(f"{name} in {plan} is no table: give [{name}]")
    for key in table:
        if key not in KEYS:
            raise UserError(f"[{name}] in {plan}: {unknown('key', key, KEYS)}")
    settings, seeds = table.get("set", []), table.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"[{name}] in {plan}: seeds = {seeds}: give different whole numbers")
    if not isinstance(settings, list) or not all(isinstance(text, str) for text in settings):
        raise UserError(f'[{name}] in {plan}: set = {settings}: give texts, as ["epochs=2"]')
    recipe, measure = table.get("recipe", name), table.get("measure", "test")
    if not isinstance(recipe, str):
        raise UserError(f"[{name}] in {plan}: recipe = {recipe!r}: give the name of a recipe")
    if Path(name).name != name:
        raise UserError(f"[{name}] in {plan}: give a name that can be a file's")
    if measure not in ("test", "val"):
        raise UserError(f"[{name}] in {plan}: measure = {measure!r}: give test or val")
    chosen = from_dict(changes(settings), load_recipe(recipe))
    return Row(name, chosen, (recipe, *to_argv(settings, **options)), tuple(seeds), measure)


def _keep(job: Job, weights: Path, dataset: Dataset, device: str) -> str:
    """Ship a finished job with its card, if its seed is the row's first; what to say of it."""
    from leanres.report.card import model_card
    from leanres.ship.export import DriftError, export

    if job.seed != job.row.seeds[0]:
        return ""
    run, out = job.folder, weights / f"{job.row.name}.safetensors"
    images = dataset.train.images[:200]
    try:
        try:
            export(run, out, images)
            note = ""
        except DriftError as error:  # rounded, it is another network
            export(run, out, images, full=True)
            note = f" as float32 ({error})"
        out.with_suffix(".md").write_text(model_card(run, out, dataset, device), encoding="utf-8")
    # The run is safe in its folder, and others are running; a full GPU is a RuntimeError.
    except (UserError, OSError, RuntimeError) as error:
        return f"; its weights are not in {weights}: {error}"
    return f" -> {out}{note}"


def _told(event: Event) -> str:
    if event.result is None:
        return f": {event.detail}" if event.detail else ""
    accuracy = 100 * event.result["accuracy"]
    return f": {accuracy:.2f} %{with_tta(event.result)}, {event.result['train_seconds']:,.0f} s"
