"""`leanres train`."""

from __future__ import annotations

import contextlib
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import folds as fold_training
from leanres.cli import options
from leanres.cli.console import counted, number_of_processes, say
from leanres.cli.processes import (
    PROCESSES,
    REDUCTION,
    Reduction,
    device_of_process,
    restarts,
    world_of,
)
from leanres.cli.progress import train_and_print
from leanres.errors import UserError
from leanres.runs.tracking import check_trackers

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.runs.run import Run
    from leanres.training.device import Device
    from leanres.training.distributed import World
    from leanres.training.recipe import Recipe
    from leanres.training.step_counts import StepCounts

FEW_STEPS = 10  # an epoch: with fewer the batch is too large for the data


def train(
    recipe: str = options.RECIPE,
    settings: list[str] = options.SETTINGS,
    epochs: int | None = options.EPOCHS,
    seed: int | None = options.SEED,
    model: str | None = options.MODEL,
    lr_max: str | None = typer.Option(
        None,
        metavar="LR|auto",
        help="auto: find the learning rate first, as find-lr does; a number: short for --set lr=.",
    ),
    folds: int | None = options.FOLDS,
    data: str = options.DATA_OR_AUTO,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    tta: str = options.TTA_OPTION,
    measure: options.Measure = typer.Option(
        "test", help="The split to measure at the end: test, or val while you are still choosing."
    ),
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    processes: int = PROCESSES,
    reduction: Reduction | None = REDUCTION,
    at_once: int = options.FOLDS_AT_ONCE,
    devices: str | None = options.FOLD_DEVICES,
    out: Path | None = options.output_option(
        None, help="The run folder. Default: runs/RECIPE-1, -2 and so on."
    ),
    no_report: bool = options.NO_REPORT,
    track: str = options.TRACK,
    as_json: bool = options.JSON,
) -> None:
    """Train a network and measure it; the run folder holds everything.

    Example: leanres train digits --data digits --out runs/first
    """
    from leanres.data.sources import locate
    from leanres.runs.fit import with_val
    from leanres.runs.layout import check_free
    from leanres.training.recipes import load_recipe
    from leanres.trials.executors import local_executor

    options.check_tta(tta)  # refuses a mistake before the training
    trackers = check_trackers(track)
    changed = options.changes(settings, epochs=epochs, seed=seed, model=model, lr=_given_lr(lr_max))
    fold_training.check(folds, measure, track, lr_max, at_once, devices)
    if lr_max == "auto" and "lr" in changed:
        raise UserError(f"lr = {changed['lr']} and --lr-max auto were both given: give one of them")
    chosen = load_recipe(recipe, changed)
    if folds is not None and (processes > 1 or number_of_processes() > 1):
        raise UserError("--folds trains one network per process: give --at-once, not --processes")
    world = world_of(processes, reduction, device_name, threads)
    device = options.make_device(device_of_process(device_name, world), chosen, threads)
    clock = time.perf_counter()
    dataset, data, recipe = world.one_per_machine(
        lambda: options.load_data_or_digits(data, size, strict, channels, recipe)
    )
    chosen = load_recipe(recipe, changed)
    if "val" not in changed and folds is None:
        chosen, notes = with_val(chosen, dataset, "--set val=0")
        options.print_notes(notes)
    options.check_val(measure, bool(chosen.val or dataset.val))
    say(f"data ready in {time.perf_counter() - clock:.1f} s", err=as_json)
    where = locate(data, size=size, channels=channels)
    origin = {"command": options.current_command(), "measure": measure, "tta": tta} | where
    if folds is not None:
        place = out or Path("runs", f"{Path(recipe).stem}-{folds}-folds")
        executor = local_executor(
            dataset, chosen, (devices or device_name).split(","), at_once, threads
        )
        fold_training.train_folds(folds, chosen, dataset, executor, place, origin, as_json)
        return
    with world.agreed():
        if out and world.leads and not restarts():
            check_free(out)
    found: dict[str, Any] = {}
    if lr_max == "auto":
        chosen, found = _with_found_lr(chosen, dataset, device, as_json)
    run = _begin_or_continue(out, Path(recipe).stem, chosen, dataset, device, origin | found, world)
    options.print_notes([*run.notes, *_few_steps(run.setup.counts)])
    train_and_print(run, as_json, trackers, not no_report)


def _begin_or_continue(
    out: Path | None,
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    origin: dict[str, Any],
    world: World,
) -> Run:
    """A new run; where torchrun has started the processes again, the one that they had begun."""
    from leanres.runs.run import create, reopen

    begun: Path | None = None
    with world.agreed():
        if world.leads:
            begun = _begun(out, name, recipe) if restarts() else None
            out = begun or out or _next_folder(name)
    begun, out = world.exchange((begun, out))[0]
    assert out is not None, "the first process has named a folder"
    if begun:
        return reopen(begun, lambda _: dataset, lambda _: device, world=world)
    try:
        return create(out, recipe, dataset, device, origin, world)
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()  # where it is empty
        raise


def _begun(out: Path | None, name: str, recipe: Recipe) -> Path | None:
    """The newest run of this recipe that the same command has begun."""
    from leanres.runs.run_json import INFO, matches_run, read_info

    for folder in [out] if out else sorted(Path("runs").glob(f"{name}-*"), key=_age):
        if (folder / INFO).exists():
            info = read_info(folder, queued=True)
            same = info["origin"].get("command") == options.current_command()
            if same and matches_run(info, recipe):
                return folder
    return None


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _few_steps(counts: StepCounts) -> list[str]:
    """A note on a training of few steps, and what makes more of them."""
    from leanres.training.recipes import SMALL_DATA

    if counts.steps_per_epoch >= FEW_STEPS or counts.total >= 10 * FEW_STEPS:
        return []
    more = "give more --epochs, or a smaller --set batch_size=N"
    if counts.batch_size > SMALL_DATA.batch_size:
        more = f"the recipe small-data has batches of {SMALL_DATA.batch_size}"
    return [f"only {counted(counts.total, 'step')} of {counts.batch_size:,} images in all: {more}"]


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
        say(f"{name} {getattr(result, name):.2g} ({rule}): {reason}", err=as_json)
    say(f"learning rates found in {took:.1f} s", err=as_json)
    facts = result.to_dict()
    kept = ("suggestions", "lr_min", "lr_max", "rules", "reasons", "stopped")
    return from_dict(result.settings(recipe), recipe), {"lr_range": {k: facts[k] for k in kept}}


def _next_folder(name: str) -> Path:
    """A new, empty folder runs/NAME-1, -2, ...: made at once, as another process may want one."""
    for number in itertools.count(1):
        folder = Path("runs", f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # for mypy: count never ends
