"""`leanres campaign`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli import options
from leanres.cli.compare import print_rows
from leanres.cli.console import say
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.trials.campaign import PlanRow
    from leanres.trials.jobs import Job


def campaign(
    plan: Path = typer.Argument(metavar="PLAN", help="A TOML file with one table per recipe."),
    settings: list[str] = options.SETTINGS,
    minutes: float = typer.Option(0, min=0, help="Save and stop after as many; 0: never."),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    at_once: int = options.AT_ONCE,
    devices: str = options.DEVICES,
    threads: int = options.THREADS_EACH,
    executor: options.Executors = options.EXECUTOR,
    address: str = options.ADDRESS,
    as_json: bool = options.JSON,
    runs: Path = typer.Option(Path("runs"), help="Folder of the run folders and their logs."),
    results: Path = typer.Option(Path("results"), help="Folder of the ledger entries."),
    weights: Path = typer.Option(
        Path("weights"), help="Folder of the first seeds' weights and model cards."
    ),
) -> None:
    """Train every recipe of a plan with every seed; the same command continues.

    A plan is a TOML file with one table [NAME] per recipe. All its keys are optional: recipe =
    "..." (default: NAME), seeds = [0, 1], set = ["epochs=2"] and measure = "val". --set changes
    every recipe.

    Example: leanres campaign plan.toml --at-once 2 --minutes 30
    """
    from leanres.data.sources import locate
    from leanres.training.device import detect
    from leanres.trials import campaign as library
    from leanres.trials.executors import LocalProcesses
    from leanres.trials.jobs import is_finished

    rows = library.read_plan(plan, settings)
    command = options.current_command()
    ray = options.make_ray(executor, address, runs, devices, at_once, threads)
    names = ["auto"] if ray else devices.split(",")
    found = [detect(name).name for name in names]
    dataset = options.load_dataset(data, size, strict, channels)
    planned = library.plan_jobs(
        rows, runs, {"command": command} | locate(data, size=size, channels=channels)
    )
    row_of = {job.folder: row for row, job in planned}
    before = {job.folder for _, job in planned if is_finished(job, dataset)}
    where = ray or LocalProcesses(at_once or len(names), names, threads)
    say(
        f"{plan}: {len(before)} of {len(planned)} finished; {where.slots} at once,"
        f" progress in {runs}/*.log",
        err=as_json,
    )
    failed, deadline = False, time.monotonic() + (60 * minutes or float("inf"))
    for event in library.campaign(planned, results, where, command, deadline):
        row, is_old, kept = row_of[event.job.folder], event.job.folder in before, ""
        if event.kind == "finished":
            kept = _keep(row, event.job, weights, dataset, found[0], is_old)
        failed = failed or event.kind in ("failed", "diverged")
        if as_json:
            say(json.dumps({"event": event.kind, "run": str(event.job.folder)}))
        elif kept or not is_old:
            say(f"{options.event_line(event)}{kept}")
    count = sum(is_finished(job) for _, job in planned)
    again = "" if count == len(planned) else "; the same command continues"
    say(f"{count} of {len(planned)} finished{again}", err=as_json)
    for measure in ("test", "val") if not as_json else ():
        if table := library.summary_rows(rows, results, measure):
            print_rows(table, "row", measure)
    if failed:
        raise typer.Exit(1)


def _keep(
    row: PlanRow, job: Job, weights: Path, dataset: Dataset, device: str, is_old: bool
) -> str:
    """Export a finished job with its card if its seed is the row's first; what to print of it.

    One that `is_old`, finished by an earlier call, has its card already unless that was killed.
    """
    from leanres.io import write_bytes
    from leanres.report.card import model_card
    from leanres.ship.export import DriftError, export

    run, out = job.folder, weights / f"{row.name}.safetensors"
    card = out.with_suffix(".md")  # the last file that is written
    if job.recipe.seed != row.seeds[0] or (is_old and card.exists()):
        return ""
    images = dataset.train.images[:200]
    try:
        try:
            export(run, out, images)
            note = ""
        except DriftError as error:  # rounding would change its answers
            export(run, out, images, full=True)
            note = f" as float32 ({error})"
        write_bytes(card, model_card(run, out, dataset, device).encode())
    # The run is safe in its folder, and others are running; a full GPU is a RuntimeError.
    except (UserError, OSError, RuntimeError) as error:
        return f"; its weights are not in {weights}: {error}"
    return f" -> {out}{note}"
