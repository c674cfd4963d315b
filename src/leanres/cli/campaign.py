"""`leanres campaign`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli import options
from leanres.cli.compare import print_rows
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.trials.campaign import PlanRow
    from leanres.trials.jobs import Event, Job


def campaign(
    plan: Path = typer.Argument(metavar="PLAN", help="A TOML file: a table per recipe."),
    settings: list[str] = options.SETTINGS,
    minutes: float = typer.Option(0, min=0, help="Then save and stop; 0: run to the end."),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    strict: bool = options.STRICT,
    at_once: int = options.AT_ONCE,
    devices: str = options.DEVICES,
    threads: int = options.THREADS_EACH,
    as_json: bool = options.JSON,
    runs: Path = typer.Option(Path("runs"), help="Folder of the run folders and their logs."),
    results: Path = typer.Option(Path("results"), help="Folder of the ledger entries."),
    weights: Path = typer.Option(
        Path("weights"), help="Folder of the first seeds' weights and model cards."
    ),
) -> None:
    """Train a plan's recipes, the first seeds first; the same command continues.

    A plan has one table per recipe: [NAME], and in it, if wanted, recipe = "..." (else NAME),
    seeds = [0, 1], set = ["epochs=2"] and measure = "val". --set changes every row.

    Example: leanres campaign plan.toml --at-once 2 --minutes 30
    """
    from leanres.data.sources import locate
    from leanres.training.device import detect
    from leanres.trials import campaign as library
    from leanres.trials.executors import LocalProcesses
    from leanres.trials.jobs import is_finished

    rows, names = library.read_plan(plan, settings), devices.split(",")
    command, found = options.current_command(), [detect(name).name for name in names]
    dataset = options.load_dataset(data, size, strict)
    planned = library.plan_jobs(rows, runs, {"command": command} | locate(data, size=size))
    row_of = {job.folder: row for row, job in planned}

    def keep(job: Job) -> str:
        return _keep(row_of[job.folder], job, weights, dataset, found[0])

    done = [job for _, job in planned if is_finished(job, dataset)]
    executor = LocalProcesses(at_once or len(names), names, threads)
    typer.echo(
        f"{plan}: {len(planned)} trainings, {len(done)} finished; {executor.slots} at once,"
        f" progress in {runs}/*.log",
        err=as_json,
    )
    for job in done:  # a call that was killed may not have written the card, its last file
        lacks = not (weights / f"{row_of[job.folder].name}.md").exists()
        if lacks and (kept := keep(job)):
            typer.echo(f"finished {job.folder.name}{kept}", err=as_json)
    ends, deadline = len(done) * ["finished"], time.monotonic() + (60 * minutes or float("inf"))
    for event in library.campaign(planned, results, executor, command, deadline):
        ends.append(event.kind)
        kept = keep(event.job) if event.kind == "finished" else ""
        if as_json:
            typer.echo(json.dumps({"event": event.kind, "run": str(event.job.folder)}))
        else:
            typer.echo(f"{event.kind:8} {event.job.folder.name}{_told(event)}{kept}")
    count = ends.count("finished")
    again = "" if count == len(planned) else "; the same command continues"
    typer.echo(f"{count} of {len(planned)} trainings finished{again}", err=as_json)
    for measure in ("test", "val") if not as_json else ():
        if table := library.summary_rows(rows, results, measure):
            print_rows(table, "row", measure)
    if {"failed", "diverged"} & set(ends):
        raise typer.Exit(1)


def _keep(row: PlanRow, job: Job, weights: Path, dataset: Dataset, device: str) -> str:
    """Export a finished job with its card if its seed is the row's first; what to print of it."""
    from leanres.report.card import model_card
    from leanres.ship.export import DriftError, export

    if job.recipe.seed != row.seeds[0]:
        return ""
    run, out = job.folder, weights / f"{row.name}.safetensors"
    images = dataset.train.images[:200]
    try:
        try:
            export(run, out, images)
            note = ""
        except DriftError as error:  # rounding would change its answers
            export(run, out, images, full=True)
            note = f" as float32 ({error})"
        out.with_suffix(".md").write_text(model_card(run, out, dataset, device), encoding="utf-8")
    # The run is safe in its folder, and others are running; a full GPU is a RuntimeError.
    except (UserError, OSError, RuntimeError) as error:
        return f"; its weights are not in {weights}: {error}"
    return f" -> {out}{note}"


def _told(event: Event) -> str:
    if not event.result:
        return f": {event.detail}" if event.detail else ""
    accuracy, seconds = event.result["accuracy"], event.result["train_seconds"]
    return f": {100 * accuracy:.2f} %{options.with_tta(event.result)}, {seconds:,.0f} s"
