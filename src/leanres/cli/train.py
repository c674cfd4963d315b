"""`leanres train`, `leanres resume`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import (
    DEVICE,
    JSON,
    PATH,
    RUN_DATA,
    SIZE,
    STRICT,
    THREADS,
    TRAINING,
    changes,
    check_measure,
    current_command,
    load_data_or_digits,
    load_run_data,
    make_device,
    with_tta,
)
from leanres.errors import UserError
from leanres.runs.tracking import check_trackers, open_trackers

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.runs.run import Run
    from leanres.training.device import Device
    from leanres.training.recipe import Recipe

MEASURE = typer.Option("test", help="What to measure at the end: test, or val to choose by.")
TTA = typer.Option("flip-shift", help="Test-time augmentation beside the plain figure.")
NO_REPORT = typer.Option(False, "--no-report", help="Write no report.html at the end.")
TRACK = typer.Option("", help="Pass metrics on live: tensorboard, mlflow, or both with a comma.")
FEW_STEPS = 10  # an epoch: with fewer the batch is too large for the data


def train(
    recipe: str = typer.Argument("speed", help="A recipe of `leanres recipes`, or a TOML file."),
    out: Path | None = typer.Option(None, help="Run folder; default: runs/RECIPE-1, -2, …"),
    data: str = typer.Option(
        "cifar10",
        help="cifar10, digits, a folder with one per class, or auto: CIFAR-10, else digits.",
    ),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    settings: list[str] = typer.Option(
        [], "--set", help="Change a setting: --set lr=0.2 (repeatable)."
    ),
    epochs: int | None = typer.Option(None, help="Short for --set epochs=N."),
    seed: int | None = typer.Option(None, help="Short for --set seed=N."),
    model: str | None = typer.Option(None, help="Short for --set model=NAME."),
    lr_max: str | None = typer.Option(
        None, help="auto: find the lr first, as find-lr does; a number: short for --set lr=."
    ),
    device_name: str = DEVICE,
    threads: int = THREADS,
    tta: str = TTA,
    measure: str = MEASURE,
    no_report: bool = NO_REPORT,
    track: str = TRACK,
    as_json: bool = JSON,
) -> None:
    """Train a network and measure it on the test split; the run folder holds everything."""
    from leanres.data.sources import locate
    from leanres.runs.layout import check_free
    from leanres.runs.run import create
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe

    _check(tta, measure)
    trackers = check_trackers(track)
    changed = changes(settings, epochs=epochs, seed=seed, model=model, lr=_number(lr_max))
    chosen = from_dict(changed, load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    clock = time.perf_counter()
    dataset, fallen_back = load_data_or_digits(data, path, size, strict)
    if fallen_back and recipe == "speed":
        recipe, chosen = "digits", from_dict(changed, load_recipe("digits"))
    _check_val(measure, bool(chosen.val or dataset.val))
    _say(f"data ready in {time.perf_counter() - clock:.1f} s", as_json)
    folder = out or _next_folder(Path(recipe).stem)
    check_free(folder)
    found: dict[str, Any] = {}
    if lr_max == "auto":
        chosen, found = _found(chosen, dataset, device, as_json)
    given = "digits" if fallen_back else "cifar10" if data == "auto" else data
    command = {
        "command": current_command(),
        "measure": measure,
        "tta": tta,
    }
    run = create(folder, chosen, dataset, device, command | locate(given, path, size) | found)
    if run.counts.steps_per_epoch < FEW_STEPS and run.counts.total < 10 * FEW_STEPS:
        typer.echo(
            f"note: {run.counts.total} steps of {run.counts.batch_size} images in all teach little:"
            " the recipe small-data has smaller batches",
            err=True,
        )
    _train(run, as_json, trackers, not no_report)


def _number(lr_max: str | None) -> float | None:
    """`--lr-max` as a number; None where it is not given, or to be found."""
    if lr_max in (None, "auto"):
        return None
    try:
        return float(lr_max)
    except ValueError:
        raise UserError(f"--lr-max {lr_max}: give auto, or a number") from None


def _found(
    recipe: Recipe, dataset: Dataset, device: Device, as_json: bool
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the rates that a range test suggests, and what run.json keeps of the test."""
    from leanres.lr_finder.finder import find_lr
    from leanres.training.recipe import from_dict

    clock = time.perf_counter()
    result = find_lr(recipe, dataset, device)
    took = time.perf_counter() - clock
    for name in ("lr_min", "lr_max"):
        lr = getattr(result, name)
        _say(f"{name} {lr:.2g} ({result.rules[name]}): {result.reasons[name]}", as_json)
    _say(f"learning rates found in {took:.1f} s", as_json)
    facts = result.to_dict()
    kept = ("suggestions", "lr_min", "lr_max", "rules", "reasons", "stopped")
    return from_dict(result.settings(recipe), recipe), {"lr_range": {k: facts[k] for k in kept}}


def resume(
    folder: Path = typer.Argument(metavar="RUN", help="The run folder."),
    epochs: int | None = typer.Option(
        None, min=1, help="Continue to this many epochs in all.", rich_help_panel=TRAINING
    ),
    data: str | None = RUN_DATA,
    path: Path | None = PATH,
    device_name: str = DEVICE,
    threads: int = THREADS,
    tta: str | None = typer.Option(None, help="As in train; default: the run's own."),
    measure: str | None = typer.Option(None, help="test, or val; default: the run's own."),
    no_report: bool = NO_REPORT,
    track: str = TRACK,
    as_json: bool = JSON,
) -> None:
    """Continue a run that was stopped, killed or queued, or extend a finished one (--epochs).

    It is measured on what it was started for; --measure test then reads test after val.
    """
    import torch

    from leanres.runs.run import device_of, reopen

    _check(tta or "none", measure or "test")
    trackers = check_trackers(track)

    def device(info: dict[str, Any]) -> Device:
        known = info.get("hardware", info["origin"])
        if count := threads or known.get("threads"):
            torch.set_num_threads(count)
        found = device_of(info, device_name)
        found.tune()
        return found

    run = reopen(folder, lambda info: load_run_data(info, data, path), device, epochs)
    for note in run.notes:
        _note(note)
    _check_unfinished(run, measure)
    given = {"tta": tta, "measure": measure}
    run.info["origin"] |= {key: value for key, value in given.items() if value is not None}
    _check_val(run.info["origin"].get("measure", "test"), run.val is not None)
    _train(run, as_json, trackers, not no_report)


def _check_unfinished(run: Run, measure: str | None) -> None:
    """Refuse a run with no epoch left to train and nothing left to measure."""
    measured = run.info.get("result", {}).get("split")
    there = measure if run.dataset.test else "val"
    if run.state.step < run.counts.total or measured is None or there not in (None, measured):
        return
    also = ", --measure test reads test too" if run.dataset.test and measured == "val" else ""
    raise UserError(
        f"{run.folder} is finished ({run.recipe.epochs} epochs, measured on {measured}):"
        f" --epochs N extends it{also}"
    )


def _check(tta: str, measure: str) -> None:
    """An unknown name is an error now, not after the training."""
    from leanres.metrics.inference import TTA as KINDS

    KINDS[tta]
    check_measure(measure)


def _check_val(measure: str, there: bool) -> None:
    if measure == "val" and not there:
        raise UserError("--measure val: there are no val images; --set val=5000 holds some out")


def _next_folder(name: str) -> Path:
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


def _note(line: str) -> None:
    typer.echo(f"note: {line}", err=True)


def _say(line: str, as_json: bool) -> None:
    typer.echo(line, err=as_json)


def _train(run: Run, as_json: bool, trackers: list[str], report: bool) -> None:
    from leanres.cli.progress import Live
    from leanres.runs.run import complete
    from leanres.runs.stop import Stopped

    _say(_headline(run), as_json)
    with open_trackers(trackers, run.folder, run.info, _history(run), _note) as track:
        with Live(run, stderr=as_json) as live:

            def on_epoch(row: dict[str, Any]) -> None:
                live.row(row)
                track.row(row)

            try:
                result = complete(run, live.step, on_epoch)
            except Stopped as stopped:
                number = stopped.number
                result = {}
        if not result:
            _say(f"stopped at step {run.state.step} of {run.counts.total}, saved", as_json)
            _say(f"continue with: leanres resume {run.folder}", as_json)
            raise typer.Exit(128 + number)
        track.result(result)
    if as_json:
        typer.echo(json.dumps({"run": str(run.folder), **result}))
    else:
        _print_result(run, result)
    if report:
        _report(run, as_json)


def _history(run: Run) -> list[dict[str, Any]]:
    """The finished epochs with their times, as the loop yielded them."""
    times = {time["epoch"]: time for time in run.times}
    return [row | times.get(row["epoch"], {}) for row in run.state.history]


def _report(run: Run, as_json: bool) -> None:
    """The run's page; where it cannot be written the run is none the worse."""
    from leanres.report import write_report

    try:
        page = write_report(run.folder, run.dataset)
    except (UserError, OSError) as error:
        typer.echo(f"note: no report ({error}): leanres report {run.folder}", err=True)
    else:
        _say(f"report: {page}", as_json)


def _headline(run: Run) -> str:
    from leanres.models.cost import count_params

    params = count_params(run.state.model)
    e, r = run.device, run.recipe
    name = r.model if isinstance(r.model, str) else "own network"
    val = f" + {len(run.val):,} val" if run.val is not None else ""
    epochs = "1 epoch" if r.epochs == 1 else f"{r.epochs} epochs"
    return (
        f"{name} ({params / 1e6:.2f} M params) on {len(run.setup.train):,} images{val} of"
        f" {run.dataset.name}, {epochs} of {run.counts.steps_per_epoch} steps, {e.name}"
        f" {e.precision}{', compiled' if e.compiled else ''}, seed {r.seed} -> {run.folder}"
    )


def _rate(result: dict[str, Any], precision: str) -> str:
    if "matrix_tflops" not in result:
        return ""
    return f" (4096^3 {precision} product on this machine: {result['matrix_tflops']:.2f} TFLOP/s)"


def _print_result(run: Run, result: dict[str, Any]) -> None:
    folder = run.folder
    if result["split"]:
        n = result["n"]
        typer.echo(
            f"{result['split']} accuracy {100 * result['accuracy']:.2f} %"
            f" ({round(n * result['accuracy']):,} of {n:,}){with_tta(result)}; NLL"
            f" {result['nll']:.3f}, ECE {100 * result['ece']:.1f} %;"
            f" trained in {result['train_seconds']:.0f} s{_rate(result, run.device.precision)}"
        )
    typer.echo(f"{folder}/ holds model.safetensors, metrics.csv, predictions.parquet, run.json")
    typer.echo(
        f"next: leanres evaluate {folder} | leanres predict {folder} IMAGES | leanres resume"
        f" {folder} --epochs {2 * run.recipe.epochs}"
    )
