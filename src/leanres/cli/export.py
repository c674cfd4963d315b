"""`leanres export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from leanres.cli import options
from leanres.cli.console import say
from leanres.errors import UserError


def export(
    target: Path = options.TARGET,
    out: Path = typer.Argument(
        metavar="OUT", help="FILE.safetensors for leanres, FILE.onnx for ONNX runtimes."
    ),
    data: str | None = options.TARGET_DATA,
    full: bool = options.output_option(
        False, "--full", help="Weights as float32 instead of float16."
    ),
    card: bool = typer.Option(
        False, "--card", help="Write a model card beside OUT too, with the suffix .md."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Write one file to ship, preprocessing included, and check it on real images.

    Example: leanres export runs/first first.onnx
    """
    from leanres.io import write_bytes
    from leanres.report.card import model_card
    from leanres.runs.run_json import INFO
    from leanres.runs.weights import load_classifier, weights_file
    from leanres.ship.export import CHECKED_IMAGES, target_of
    from leanres.ship.export import export as write_checked

    target_of(out)
    if card and not ((target / INFO).exists() and out.suffix.lower() == ".safetensors"):
        raise UserError("--card describes a run's weights: give a run folder and a .safetensors")
    preprocess = load_classifier(weights_file(target))[0].preprocess
    options.print_edits(target)
    dataset = options.load_target_data(target, preprocess, data)
    images = (dataset.test or dataset.val or dataset.train).images[:CHECKED_IMAGES]
    done = write_checked(target, out, images, full)
    if card:
        write_bytes(out.with_suffix(".md"), model_card(target, out, dataset).encode())
    if as_json:
        say(json.dumps(asdict(done) | {"path": str(done.path)}))
        return
    say(
        f"{done.path}: {done.bytes / 2**20:.2f} MiB. Checked on {done.images:,} images in"
        f" {done.precision}: {100 * done.agreement:.2f} % keep their class,\n"
        f"no probability changes by more than {done.drift:.2g}"
    )
    if card:
        say(f"model card: {out.with_suffix('.md')}")
