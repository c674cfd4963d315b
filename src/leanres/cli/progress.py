"""What a training prints: its first line, a live line on a terminal, epochs, the result."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres import plugins
from leanres.cli.console import console, counted, say
from leanres.cli.options import print_notes
from leanres.errors import UserError
from leanres.runs.tracking import open_trackers

if TYPE_CHECKING:
    from leanres.runs.run import Run
    from leanres.training.loop import TrainState

REFRESH_S = 1.0  # reading the loss waits for the device: not at every step
HEADS = f"{'train %':>9}{'loss':>8}{'val %':>9}{'loss':>8}{'lr':>10}{'images/s':>10}{'s':>8}"


class Live:
    """While entered, shows where the training is; `step` after each step, `row` per epoch."""

    def __init__(self, run: Run, stderr: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.run = run
        self.console = console(stderr)
        columns = (
            TextColumn("epoch {task.fields[epoch]}/" + str(run.setup.recipe.epochs)),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.progress.add_task(
            "", total=run.setup.counts.total, completed=run.state.step, epoch=1, facts=""
        )
        self.began, self.first_step = time.perf_counter(), run.state.step
        self.shown_at = 0.0
        self.width = len(f"epoch {run.setup.recipe.epochs:>3}/{run.setup.recipe.epochs}")
        self.has_heads = False

    def __enter__(self) -> Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, state: TrainState) -> None:
        """Refresh the live line, at most once a second."""
        now = time.perf_counter()
        if not self.console.is_terminal or now - self.shown_at < REFRESH_S:
            return
        self.shown_at = now
        counts = self.run.setup.counts
        rate = (state.step - self.first_step) * counts.images_per_step / (now - self.began)
        lr = float(state.optimizers[0].param_groups[0]["lr"])
        self.progress.update(
            self.task,
            completed=state.step,
            epoch=min(state.step // counts.steps_per_epoch + 1, self.run.setup.recipe.epochs),
            facts=f"{_last_step(state, counts.selected_per_step)}lr {lr:.3g}  {rate:,.0f} images/s",
        )

    def row(self, row: dict[str, Any]) -> None:
        """Print an epoch's row, the first one under the heads."""
        if not self.has_heads:
            self.console.print(" " * self.width + HEADS, style="bold", soft_wrap=True)
            self.has_heads = True
        val = " " * 17
        if "val_accuracy" in row:
            val = f"{100 * row['val_accuracy']:>9.2f}{row['val_loss']:>8.4f}"
        self.console.print(
            f"epoch {row['epoch']:>3}/{self.run.setup.recipe.epochs}".ljust(self.width)
            + f"{100 * row['train_accuracy']:>9.2f}{row['train_loss']:>8.4f}{val}"
            + f"{row['lr']:>10.3g}{row['images_per_s']:>10,.0f}{row['seconds']:>8.1f}",
            soft_wrap=True,
        )


def _last_step(state: TrainState, batch: int) -> str:
    if not state.losses:
        return ""
    correct = 100 * float(state.correct[-1]) / batch
    return f"loss {float(state.losses[-1]):.3f}  acc {correct:.0f} %  "


def train_and_print(run: Run, as_json: bool, trackers: list[str], report: bool) -> None:
    """Train to the end, measure, report. Exits with 128 + the signal where one stopped it."""
    from leanres.runs.fit import complete
    from leanres.runs.layout import with_times
    from leanres.runs.stop import Stopped

    say(headline(run), err=as_json)
    trackers, report = (trackers, report) if run.writes else ([], False)
    history = with_times(run.state.history, run.times)
    with open_trackers(
        trackers, run.folder, run.info, history, lambda note: print_notes([note])
    ) as track:
        with Live(run, stderr=as_json) as live:

            def on_epoch(row: dict[str, Any]) -> None:
                live.row(row)
                track.row(row)

            try:
                result = complete(run, live.step, on_epoch)
            except Stopped as stopped:
                number, result = stopped.number, {}
        if not result:
            say(
                f"stopped at step {run.state.step} of {run.setup.counts.total}, saved\n"
                f"continue with: leanres resume {run.folder}",
                err=as_json,
            )
            raise typer.Exit(128 + number)
        track.result(result)
    if as_json:
        say(json.dumps({"run": str(run.folder), **result}))
    else:
        _print_result(run, result)
    if report:
        _write_report(run, as_json)


def _write_report(run: Run, as_json: bool) -> None:
    """Write the run's page; a failure is a note, for the run itself is complete."""
    from leanres.report.page import write_report

    try:
        page = write_report(run.folder, run.dataset)
    except (UserError, OSError) as error:
        print_notes([f"no report ({error}): leanres report {run.folder} writes one"])
    else:
        say(f"report: {page}", err=as_json)


def headline(run: Run) -> str:
    """The first line of a run: network, data, length, where and by which kernels it computes."""
    from leanres.models.cost import count_params
    from leanres.models.zoo import network_name

    params = count_params(run.state.model)
    device, recipe = run.setup.device, run.setup.recipe
    name = network_name(recipe.model)
    val = f" + {len(run.val):,} val" if run.val is not None else ""
    world = run.setup.world
    processes = ""
    if world.size > 1:
        processes = f" {world.size} processes ({'exact' if world.exact else 'fast'}),"
    return (
        f"{name} ({params / 1e6:.2f} M params) on {len(run.setup.train):,} images{val} of"
        f" {run.dataset.name}, {counted(recipe.epochs, 'epoch')} of"
        f" {counted(run.setup.counts.steps_per_epoch, 'step')}, {device.name} {device.precision}"
        f"{', compiled' if device.compiled else ''}, kernels: {device.kernels},{processes}"
        f" seed {recipe.seed} -> {run.folder}"
    )


def _print_result(run: Run, result: dict[str, Any]) -> None:
    from leanres.metrics.classification import accuracy_text, other_metrics

    folder, recipe = run.folder, run.setup.recipe
    if result["split"]:
        rate = ""
        if "matrix_tflops" in result:
            rate = (
                f" (a large {run.setup.device.precision} product on this machine:"
                f" {result['matrix_tflops']:.2f} TFLOP/s)"
            )
        last = result.get("last_epoch", recipe.epochs)
        if last < recipe.epochs:
            stalled = f"no better val accuracy in {counted(recipe.stop_after, 'epoch')}"
            say(f"ended early, after epoch {last} of {recipe.epochs}: {stalled}")
        say(
            f"{result['split']} accuracy {accuracy_text(result)}\n"
            f"{other_metrics(result, short=True)}; trained in {result['train_seconds']:.0f} s{rate}"
        )
    else:
        say("not measured: there are no test and no val images")
    say(_next_lines(folder, result["split"], 2 * recipe.epochs))


def _next_lines(folder: Path, split: str | None, epochs: int) -> str:
    """What a finished run holds, and the commands for it; `split`: what was measured, or None."""
    files = "model.safetensors, metrics.csv, predictions.parquet, run.json"
    words = [word for name in plugins.to_load() for word in ("--plugin", _short(name))]
    given = "".join(f" {shlex.quote(word)}" for word in words)
    run = f"{shlex.quote(str(folder))}{given}"
    evaluate = [f"evaluate {run}{' --split val' * (split == 'val')}"]
    if split is None:
        files, evaluate = files.replace("predictions.parquet, ", ""), []
    steps = [*evaluate, f"predict {run} IMAGES", f"resume {run} --epochs {epochs}"]
    listed = "\n      ".join(f"leanres {step}" for step in steps)
    return f"{folder}/ holds {files}\nnext: {listed}"


def _short(plugin: str) -> str:
    """A plugin's path from here, where it is shorter; a module's name as it is."""
    here = Path.cwd()
    path = Path(plugin)
    return str(path.relative_to(here)) if path.is_relative_to(here) else plugin
