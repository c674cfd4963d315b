"""`leanres train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import (
    DATA_OR_AUTO,
    DEVICE,
    EPOCHS,
    JSON,
    MEASUREMENT,
    MODEL,
    NO_REPORT,
    OUTPUT,
    PATH,
    RECIPE,
    SEED,
    SETTINGS,
    SIZE,
    STRICT,
    THREADS,
    TRACK,
    TRAINING,
    TTA,
    changes,
    check_measurement,
    check_val,
    current_command,
    load_data_or_digits,
    make_device,
    print_notes,
)
from leanres.cli.progress import train_and_print
from leanres.errors import UserError
from leanres.runs.tracking import check_trackers

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.training.device import Device
    from leanres.training.recipe import Recipe

FEW_STEPS = 10  # an epoch: with fewer the batch is too large for the data


def train(
    recipe: str = RECIPE,
    settings: list[str] = SETTINGS,
    epochs: int | None = EPOCHS,
    seed: int | None = SEED,
    model: str | None = MODEL,
    lr_max: str | None = typer.Option(
        None,
        metavar="LR|auto",
        help="auto: find the learning rate first, as find-lr does; a number: short for --set lr=.",
        rich_help_panel=TRAINING,
    ),
    data: str = DATA_OR_AUTO,
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    tta: str = TTA,
    measure: str = typer.Option(
        "test",
        help="The split to measure at the end: test, or val while you are still choosing.",
        rich_help_panel=MEASUREMENT,
    ),
    device_name: str = DEVICE,
    threads: int = THREADS,
    out: Path | None = typer.Option(
        None, help="The run folder. Default: runs/RECIPE-1, -2 and so on.", rich_help_panel=OUTPUT
    ),
    no_report: bool = NO_REPORT,
    track: str = TRACK,
    as_json: bool = JSON,
) -> None:
    """Train a network and measure it; the run folder holds everything.

    Example: leanres train digits --data digits --out runs/first
    """
    from leanres.data.sources import locate
    from leanres.runs.layout import check_free
    from leanres.runs.run import create
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe

    check_measurement(tta, measure)
    trackers = check_trackers(track)
    changed = changes(settings, epochs=epochs, seed=seed, model=model, lr=_given_lr(lr_max))
    chosen = from_dict(changed, load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    clock = time.perf_counter()
    dataset, is_fallback = load_data_or_digits(data, path, size, strict)
    if is_fallback and recipe == "speed":
        recipe, chosen = "digits", from_dict(changed, load_recipe("digits"))
    check_val(measure, bool(chosen.val or dataset.val))
    typer.echo(f"data ready in {time.perf_counter() - clock:.1f} s", err=as_json)
    folder = out or _next_folder(Path(recipe).stem)
    check_free(folder)
    found: dict[str, Any] = {}
    if lr_max == "auto":
        chosen, found = _with_found_lr(chosen, dataset, device, as_json)
    source = "digits" if is_fallback else "cifar10" if data == "auto" else data
    origin = {"command": current_command(), "measure": measure, "tta": tta}
    run = create(folder, chosen, dataset, device, origin | locate(source, path, size) | found)
    counts = run.counts
    if counts.steps_per_epoch < FEW_STEPS and counts.total < 10 * FEW_STEPS:
        print_notes(
            [
                f"only {counts.total} steps of {counts.batch_size} images in all: the recipe"
                " small-data has smaller batches"
            ]
        )
    train_and_print(run, as_json, trackers, not no_report)


def _given_lr(lr_max: str | None) -> float | None:
    """`--lr-max` as a number; None where it was not given, or is to be found."""
    if lr_max in (None, "auto"):
        return None
    try:
        return float(lr_max)
    except ValueError:
        raise UserError(f"--lr-max {lr_max}: give auto, or a number") from None


def _with_found_lr(
    recipe: Recipe, dataset: Dataset, device: Device, as_json: bool
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the learning rates of a range test, and what run.json keeps of the test."""
    from leanres.lr_finder.finder import find_lr
    from leanres.training.recipe import from_dict

    clock = time.perf_counter()
    result = find_lr(recipe, dataset, device)
    took = time.perf_counter() - clock
    for name in ("lr_min", "lr_max"):
        rule, reason = result.rules[name], result.reasons[name]
        typer.echo(f"{name} {getattr(result, name):.2g} ({rule}): {reason}", err=as_json)
    typer.echo(f"learning rates found in {took:.1f} s", err=as_json)
    facts = result.to_dict()
    kept = ("suggestions", "lr_min", "lr_max", "rules", "reasons", "stopped")
    return from_dict(result.settings(recipe), recipe), {"lr_range": {k: facts[k] for k in kept}}


def _next_folder(name: str) -> Path:
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")
