"""`leanres bench scaling`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import typer

from leanres.cli import options
from leanres.cli.console import check_picture, print_table, save_picture, say, write_json
from leanres.errors import UserError


def scaling(
    model: str | None = options.STEP_MODEL,
    recipe: str = options.STEP_RECIPE,
    settings: list[str] = options.SETTINGS,
    batches: str = options.measurement_option(
        "32,125,500,2000", help="Batch sizes, comma-separated."
    ),
    params: str = typer.Option("0.5,1,2,5", help="Millions of parameters to widen to."),
    shares: str = typer.Option("0.1,0.5,1,2", help="Shares of the images; above 1 images repeat."),
    steps: int = typer.Option(5, min=1, help="Steps to measure of each batch size and network."),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    plot: Path | None = options.output_option(
        None, help="Draw the curves into this .png, .svg or .pdf file."
    ),
    out: Path | None = options.OUT_JSON,
    as_json: bool = options.JSON,
) -> None:
    """Measure how time grows with batch size, network size and images, and fit a line to each.

    Example: leanres bench scaling --data digits --params 0.1,0.2 --shares 1,2
    """
    from leanres.bench import scaling as library
    from leanres.models.zoo import resolve
    from leanres.runs.layout import commit
    from leanres.training.device import hardware
    from leanres.training.recipes import load_recipe

    check_picture("--plot", plot)
    batch_sizes = [int(x) for x in _rising_numbers("--batches", batches, whole=True)]
    budgets = [round(1e6 * x) for x in _rising_numbers("--params", params)]
    image_shares = _rising_numbers("--shares", shares)
    plain = {"freeze_stem_at": 0.0, "progressive_resizing": []}
    chosen = load_recipe(recipe, plain | options.changes(settings, model=model))
    device = options.make_device(device_name, chosen, threads)
    networks = [library.widened(resolve(chosen.model), budget) for budget in budgets]
    if len(set(networks)) < len(networks):
        raise UserError(f"--params {params!r}: two of these are one network; give other numbers")
    dataset = options.load_dataset(data, size, strict, channels)
    curves = [
        library.batch_curve(chosen, dataset, device, batch_sizes, steps),
        library.network_curve(chosen, dataset, device, networks, steps),
        library.images_curve(chosen, dataset, device, image_shares),
    ]
    report: dict[str, Any] = {
        "hardware": hardware(device),
        "commit": commit(),
        "recipe": chosen.to_dict(),
        "curves": [curve.to_dict() for curve in curves],
    }
    if as_json:
        say(json.dumps(report))
    else:
        for curve in report["curves"]:
            _print_curve(curve)
    write_json(out, report)
    if plot is not None:
        save_picture(library.figure(curves), plot)


def _rising_numbers(option: str, text: str, whole: bool = False) -> list[float]:
    """At least two different numbers above 0, comma-separated in the text, sorted."""
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
    columns = (curve[key] for key in ("x", "seconds", "deviations", "notes"))
    rows = [
        [f"{x:,.0f}" if x >= 1000 else f"{x:.4g}", f"{s:.4g}", f"{100 * deviation:+.1f} %", note]
        for x, s, deviation, note in zip(*columns, strict=True)
    ]
    takes = f"seconds {curve['takes']}"
    print_table([curve["grows"], takes, "off the line", ""], rows)
    fixed, slope = curve["fixed_seconds"], curve["seconds_per_unit"]
    say(f"line: {fixed:.3g} {takes}, plus {slope:.3g} per {curve['unit']}\n")
