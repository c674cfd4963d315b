"""`leanres bench step`, `scaling`, `race`, `peers`: how fast, measured here."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer

from leanres.cli.console import check_picture, save_picture
from leanres.cli.options import (
    DEVICE,
    PATH,
    SIZE,
    STRICT,
    THREADS,
    changes,
    current_command,
    load_dataset,
    make_device,
    to_argv,
)
from leanres.errors import UserError

app = typer.Typer(help="How fast: a step in parts, seconds to an accuracy, peers at the same work.")
SETTINGS = typer.Option([], "--set", help="Change a setting, as in train.")
DATA = typer.Option("cifar10", help="cifar10, digits, or a folder with one per class.")
OUT = typer.Option(None, help="Write the result to this JSON file too.")
JSON = typer.Option(False, "--json", help="Print JSON; progress goes to stderr.")


@app.command()
def step(
    model: str | None = typer.Argument(None, help="A model; default: the recipe's own."),
    recipe: str = typer.Option("speed", help="Whose batch, augmentation and optimizer."),
    settings: list[str] = SETTINGS,
    steps: int = typer.Option(10, min=1, help="Steps to measure."),
    scale: float = typer.Option(1.0, help="Share of the side to train at."),
    data: str = DATA,
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    device_name: str = DEVICE,
    threads: int = THREADS,
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """Images per second, the time of each part of a step, shares of what the machine can do."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's log mixes with ours
    from leanres.bench.step import measure_step
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe

    # One size, and the stem frozen as in most of a training's steps, unless it is set.
    changed = {"freeze_stem_at": 0.0} | changes(settings, model=model)
    chosen = from_dict(changed | {"progressive_resizing": [[0.0, scale]]}, load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    report = measure_step(chosen, load_dataset(data, path, size, strict), device, steps)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_step(report)
    _write(out, report)


def _write(out: Path | None, report: dict[str, Any]) -> None:
    """Write the report; it has been printed, so that a bad place loses nothing."""
    if out is not None:
        from leanres.io import write_bytes

        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, (json.dumps(report, indent=1) + "\n").encode())


def _print_step(report: dict[str, Any]) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    r, hardware = report, report["hardware"]
    cores = f"{hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    where = hardware["gpu"] or f"{hardware['cpu']}, {cores}"
    compiled = ", compiled" if hardware["compiled"] else ""
    typer.echo(
        f"{r['model']} at {r['side']} px, batch {r['batch_size']},"
        f" {hardware['precision']}{compiled}, on {where}:"
        f" {r['images_per_s']:,.0f} images/s, {1e3 * r['seconds_per_step']:.1f} ms a step"
    )
    for title, parts in (("part of a step", r["parts"]), ("kind of operator", r["operators"])):
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(title, no_wrap=True)
        table.add_column("ms", justify="right")
        table.add_column("share", justify="right")
        total = sum(parts.values())
        for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
            table.add_row(name, f"{1e3 * seconds:.1f}", f"{100 * seconds / total:.1f} %")
        typer.echo()
        console().print(table)
    typer.echo(
        f"\narithmetic: {r['tflops']:.3g} TFLOP/s, {100 * r['share_of_matrix_rate']:.0f} % of what"
        f" a 4096^3 product reaches ({r['matrix_tflops']:.3g}),"
        f" {100 * r['tflops'] / r['tflops_of_convolutions_alone']:.0f} % of what the convolutions"
        f" reach alone ({r['tflops_of_convolutions_alone']:.3g})\n"
        f"memory: {r['gb_per_step']:.2f} GB a step if no cache helped,"
        f" {100 * r['share_of_memory_rate']:.0f} % of a copy's {r['memory_gb_per_s']:.1f} GB/s;"
        f" peak {r['peak_memory_mib']:,.0f} MiB"
    )


@app.command()
def scaling(
    model: str | None = typer.Argument(None, help="A model; default: the recipe's own."),
    recipe: str = typer.Option("speed", help="Whose batch, augmentation and optimizer."),
    settings: list[str] = SETTINGS,
    batches: str = typer.Option("32,125,500,2000", help="Batch sizes, with commas."),
    params: str = typer.Option("0.5,1,2,5", help="Millions of parameters to widen the network to."),
    shares: str = typer.Option("0.1,0.5,1,2", help="Shares of the images; above 1 they repeat."),
    steps: int = typer.Option(5, min=1, help="Steps of each batch size and network."),
    data: str = DATA,
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    device_name: str = DEVICE,
    threads: int = THREADS,
    plot: Path | None = typer.Option(None, help="Draw the curves into this PNG or SVG file."),
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """Seconds against batch size, network size and images, and how far off a straight line."""
    from leanres.bench import scaling as growth
    from leanres.models.zoo import resolve
    from leanres.runs.layout import commit
    from leanres.training.device import hardware
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe

    check_picture("--plot", plot)
    sizes = [int(x) for x in _numbers("--batches", batches, whole=True)]
    budgets = [round(1e6 * x) for x in _numbers("--params", params)]
    parts = _numbers("--shares", shares)
    changed = {"freeze_stem_at": 0.0, "progressive_resizing": []} | changes(settings, model=model)
    chosen = from_dict(changed, load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    networks = [growth.widened(resolve(chosen.model), budget) for budget in budgets]
    if len(set(networks)) < len(networks):
        raise UserError(f"--params {params!r}: two of these are one network; give other numbers")
    dataset = load_dataset(data, path, size, strict)
    curves = []
    for curve in (
        growth.batch_curve(chosen, dataset, device, sizes, steps),
        growth.network_curve(chosen, dataset, device, networks, steps),
        growth.images_curve(chosen, dataset, device, parts),
    ):
        curves.append(curve)
        if not as_json:
            _print_curve(curve.to_dict())
    report = {
        "hardware": hardware(device),
        "commit": commit(),
        "recipe": chosen.to_dict(),
        "curves": [curve.to_dict() for curve in curves],
    }
    if as_json:
        typer.echo(json.dumps(report))
    _write(out, report)
    if plot is not None:
        save_picture(growth.figure(curves), plot)


def _numbers(option: str, text: str, whole: bool = False) -> list[float]:
    """At least two different numbers above 0, with commas, rising."""
    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        found = []
    fits = all(0 < x < math.inf and (not whole or x.is_integer()) for x in found)
    if len(found) < 2 or not fits:
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"{option} {text!r}: give two or more {kind} above 0, such as 1,2,5")
    return found


def _print_curve(curve: dict[str, Any]) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in (curve["grows"], f"seconds {curve['takes']}", "off the line", ""):
        table.add_column(title, justify="right", no_wrap=True)
    columns = (curve[key] for key in ("x", "seconds", "deviations", "notes"))
    for x, seconds, off, note in zip(*columns, strict=True):
        count = f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"
        table.add_row(count, f"{seconds:.4g}", f"{100 * off:+.1f} %", note)
    console().print(table)
    fixed, slope = curve["fixed_seconds"], curve["seconds_per_unit"]
    typer.echo(
        f"the line: {fixed:.3g} s {curve['takes']} and {slope:.3g} s for each {curve['unit']}\n"
    )


@app.command()
def race(
    recipe: str = typer.Argument("speed", help="A recipe of `leanres recipes`, or a TOML file."),
    target: float = typer.Option(94.0, min=0, max=100, help="Accuracy in percent, with TTA."),
    n: int = typer.Option(5, min=1, help="Seeds, from --seed on."),
    seed: int = typer.Option(0, min=0, help="The first seed."),
    warm: bool = typer.Option(
        False, "--warm", help="One process, clock from the first step: as the records count."
    ),
    settings: list[str] = SETTINGS,
    data: str = DATA,
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    device_name: str = DEVICE,
    threads: int = THREADS,
    runs: Path = typer.Option(Path("runs"), "--runs", help="Folder of the run folders."),
    out: Path | None = typer.Option(
        None, help="The ledger entry; default: results/race-RECIPE.json. Seeds in it are kept."
    ),
    as_json: bool = JSON,
) -> None:
    """Seconds to an accuracy: the recipe with n seeds, each a cold process as a user starts it."""
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe
    from leanres.trials import race as racing

    chosen = from_dict(changes(settings), load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    place = out or Path("results", f"race-{Path(recipe).stem}{'-warm' * warm}.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    if warm:
        laps = partial(
            racing.warm_runs, chosen, dataset=load_dataset(data, path, size, strict), device=device
        )
    else:
        options = {"data": data, "path": path, "size": size, "strict": strict}
        given = to_argv(settings, **options, device=device_name, threads=threads or None)
        folder = runs / place.stem
        laps = partial(racing.cold_runs, [recipe, *given], chosen, folder=folder, device=device)
    claim = {
        "command": current_command(),
        "counted": "warm: training alone" if warm else "cold: the whole process",
        "recipe": chosen.to_dict(),
    }
    numbers = range(seed, seed + n)
    for found in racing.race(laps, numbers, target / 100, place, claim):
        typer.echo(_standing(found), err=as_json)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{place} holds every lap")


def _standing(found: dict[str, Any]) -> str:
    """One line: how far the race is, and what it has found."""

    def spread(key: str, scale: float, digits: int) -> str:
        mean, sd = found[key]["mean"], found[key]["sd"]
        tail = "" if sd is None else f" ± {scale * sd:.{digits}f}"
        return f"{scale * mean:.{digits}f}{tail}"

    parts = [
        f"n = {found['n']}: {spread('accuracy_tta', 100, 2)} % with augmentation"
        f" ({spread('accuracy', 100, 2)} % without), trained in"
        f" {spread('train_seconds', 1, 1)} s"
    ]
    if "wall_seconds" in found:
        parts.append(f"wall clock {spread('wall_seconds', 1, 1)} s")
    parts.append(f"{100 * found['reached']:.0f} % of seeds at {100 * found['target']:g} % or more")
    return ", ".join(parts)


@app.command()
def peers(
    names: str = typer.Argument(
        "all", help="With commas: leanres, pytorch, lightning, fastai; all: those installed."
    ),
    model: str = typer.Option("resnet20", help="The network that all of them train."),
    images: int = typer.Option(10_000, min=0, help="The first so many images; 0: all."),
    batch_size: int = typer.Option(128, min=1, help="Images in a batch."),
    epochs: int = typer.Option(2, min=1, help="Epochs; the last one counts."),
    workers: int = typer.Option(2, min=0, help="Processes that augment by Pillow."),
    augment: str = typer.Option(
        "crop,flip", help="With commas, in order: auto_augment, crop, flip, perspective."
    ),
    data: str = DATA,
    path: Path | None = PATH,
    device_name: str = DEVICE,
    script: list[Path] = typer.Option([], help="Race this script too (repeatable)."),
    pattern: str = typer.Option(
        "", help="Expression with groups accuracy, seconds in its output; default: airbench's."
    ),
    out: Path | None = OUT,
    as_json: bool = JSON,
) -> None:
    """One training by several programs in one run: seconds an epoch, and ratios to ours."""
    from leanres.bench.peers import (
        AIRBENCH_ROW,
        PEERS,
        Work,
        check_script,
        missing,
        run_peer,
        run_script,
    )
    from leanres.runs.layout import commit
    from leanres.training.device import detect, hardware

    where = None if path is None else str(path)
    steps = [name for name in augment.split(",") if name]
    work = Work(model, data, where, images, batch_size, epochs, workers, device_name, steps)
    work.steps()  # a mistake ends here, not in each program
    work.network(work.split())
    device = detect(device_name)
    chosen = list(PEERS) if names == "all" else names.split(",")
    lacking = {name: package for name in chosen if (package := missing(name))}
    for name, package in lacking.items():
        line = f"{name} is not installed: pip install {package}"
        if names != "all":
            raise UserError(line)
        typer.echo(f"note: {line}", err=True)
    row = pattern or AIRBENCH_ROW
    for one in script:
        check_script(one, row)
    report: dict[str, Any] = {
        "hardware": hardware(device),
        "commit": commit(),
        "work": asdict(work),
        "epoch_seconds": {},
        "scripts": {},
    }
    for name in (name for name in chosen if name not in lacking):
        report["epoch_seconds"][name] = run_peer(name, work)
        typer.echo(f"{name}: {report['epoch_seconds'][name][-1]:.1f} s an epoch", err=True)
        _write(out, report)  # what comes after may fail
    for one in script:
        report["scripts"][str(one)] = run_script(one, row)
        _write(out, report)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_peers(report)


def _print_peers(report: dict[str, Any]) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    last = {name: seconds[-1] for name, seconds in report["epoch_seconds"].items()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("program", no_wrap=True)
    for title in ("s an epoch", "first epoch", "against ours"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, seconds in sorted(last.items(), key=lambda item: item[1]):
        ratio = f"{seconds / last['leanres']:.2f}" if "leanres" in last else "-"
        first = f"{report['epoch_seconds'][name][0]:.1f}"
        table.add_row(name, f"{seconds:.1f}", first, ratio)
    console().print(table)
    for path, found in report["scripts"].items():
        accuracy, seconds = found["accuracy"], found["seconds"]
        typer.echo(
            f"{path}: n = {found['n']}, accuracy {accuracy['mean']:.4g},"
            f" {seconds['mean']:.4g} s a training"
        )
