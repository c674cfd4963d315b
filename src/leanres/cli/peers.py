"""`leanres bench peers`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from leanres.cli import options
from leanres.cli.console import print_table, write_json
from leanres.errors import UserError

SCRIPTS = "Scripts of others"


def peers(
    names: str = typer.Argument(
        "all",
        metavar="PROGRAMS",
        help="leanres, pytorch, lightning, fastai, with commas; all: those that are installed.",
    ),
    model: str = options.training_option("resnet20", help="The network that all of them train."),
    batch_size: int = typer.Option(128, min=1, help="Images per batch."),
    epochs: int = typer.Option(2, min=1, help="Epochs; the last one counts."),
    augment: str = typer.Option(
        "crop,flip", help="With commas, in order: auto_augment, crop, flip, perspective."
    ),
    data: str = options.DATA,
    path: Path | None = options.PATH,
    images: int = typer.Option(10_000, min=0, help="Train on the first N images; 0: all."),
    script: list[Path] = typer.Option(
        [], help="Run this Python script too (repeatable).", rich_help_panel=SCRIPTS
    ),
    pattern: str = typer.Option(
        "",
        help="Finds groups accuracy and seconds in its output; default: as airbench prints them.",
    ),
    device_name: str = options.DEVICE,
    workers: int = typer.Option(
        2, min=0, help="Processes of the other programs that augment images with Pillow."
    ),
    out: Path | None = options.OUT_JSON,
    as_json: bool = options.JSON,
) -> None:
    """Train the same network with several programs: seconds per epoch, compared with leanres.

    Example: leanres bench peers leanres,pytorch --data digits --images 500
    """
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
    work.steps()  # refuses a mistake once, before any program starts
    work.network(work.split())
    device = detect(device_name)
    chosen = list(PEERS) if names == "all" else names.split(",")
    lacking = {name: package for name in chosen if (package := missing(name))}
    for name, package in lacking.items():
        line = f"{name} is not installed: pip install {package}"
        if names != "all":
            raise UserError(line)
        options.print_notes([line])
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
        typer.echo(f"{name}: {report['epoch_seconds'][name][-1]:.1f} s per epoch", err=True)
        write_json(out, report)  # the next program may fail
    for one in script:
        report["scripts"][str(one)] = run_script(one, row)
        write_json(out, report)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_peers(report)


def _print_peers(report: dict[str, Any]) -> None:
    last = {name: seconds[-1] for name, seconds in report["epoch_seconds"].items()}
    rows = []
    for name, seconds in sorted(last.items(), key=lambda item: item[1]):
        ratio = f"{seconds / last['leanres']:.2f}" if "leanres" in last else "-"
        first = f"{report['epoch_seconds'][name][0]:.1f}"
        rows.append([name, f"{seconds:.1f}", first, ratio])
    if rows:
        print_table(["program", "s per epoch", "first epoch", "times leanres"], rows)
    for path, found in report["scripts"].items():
        accuracy, seconds = found["accuracy"], found["seconds"]
        typer.echo(
            f"{path}: n = {found['n']}, accuracy {accuracy['mean']:.4g},"
            f" {seconds['mean']:.4g} s a training"
        )
