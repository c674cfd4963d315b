"""`leanres bench step`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say, write_json


def step(
    model: str | None = options.STEP_MODEL,
    recipe: str = options.STEP_RECIPE,
    settings: list[str] = options.SETTINGS,
    steps: int = options.measurement_option(10, min=1, help="Steps to measure."),
    scale: float = typer.Option(
        1.0,
        help="Side of the images as a share of the full side, as in progressive resizing.",
    ),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    out: Path | None = options.OUT_JSON,
    as_json: bool = options.JSON,
) -> None:
    """Measure a training step: images per second, time of each part, share of the machine's peak.

    Example: leanres bench step resnet20 --data digits --steps 3
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log off
    from leanres.bench.step import measure_step
    from leanres.training.recipes import load_recipe

    # One image size, and unless --set says otherwise a frozen stem, as in most steps of a training.
    changed = {"freeze_stem_at": 0.0} | options.changes(settings, model=model)
    chosen = load_recipe(recipe, changed | {"progressive_resizing": [[0.0, scale]]})
    device = options.make_device(device_name, chosen, threads)
    report = measure_step(chosen, options.load_dataset(data, size, strict, channels), device, steps)
    if as_json:
        say(json.dumps(report))
    else:
        _print_step(report)
    write_json(out, report)


def _print_step(report: dict[str, Any]) -> None:
    r, hardware = report, report["hardware"]
    cores = f"{hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    where = hardware["gpu"] or f"{hardware['cpu']}, {cores}"
    compiled = ", compiled" if hardware["compiled"] else ""
    say(
        f"{r['model']} at {r['side']} px, batch {r['batch_size']},"
        f" {hardware['precision']}{compiled}\non {where}; kernels: {hardware['kernels']}\n"
        f"{r['images_per_s']:,.0f} images/s, {1e3 * r['seconds_per_step']:.1f} ms per step"
    )
    for title, parts in (("part of a step", r["parts"]), ("kind of operator", r["operators"])):
        total = sum(parts.values())
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        say()
        print_table(
            [title, "ms", "share"],
            [[name, f"{1e3 * s:.1f}", f"{100 * s / total:.1f} %"] for name, s in ordered],
        )
    say(
        f"\narithmetic: {r['tflops']:.3g} TFLOP/s\n"
        f"  {100 * r['share_of_matrix_rate']:.0f} % of what a {r['matrix_size']}^3 product reaches"
        f" ({r['matrix_tflops']:.3g})\n"
        f"  {100 * r['tflops'] / r['tflops_of_convolutions_alone']:.0f} % of what the convolutions"
        f" reach alone ({r['tflops_of_convolutions_alone']:.3g})\n"
        f"memory: {r['gb_per_step']:.2f} GB per step if no cache helped\n"
        f"  {100 * r['share_of_memory_rate']:.0f} % of the {r['memory_gb_per_s']:.1f} GB/s of a"
        f" copy; peak {r['peak_memory_mib']:,.0f} MiB"
    )
