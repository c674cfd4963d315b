"""`leanres export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from leanres.cli.options import PATH, TARGET, load_dataset, load_run_data
from leanres.errors import UserError


def export(
    target: Path = TARGET,
    out: Path = typer.Argument(
        metavar="OUT", help="FILE.safetensors for leanres, FILE.onnx for anything else."
    ),
    full: bool = typer.Option(False, "--full", help="Weights as float32 instead of float16."),
    card: bool = typer.Option(False, "--card", help="Write a model card (OUT's name .md) too."),
    data: str | None = typer.Option(
        None, help="Images to check it on; default: what the run was trained on, or cifar10."
    ),
    path: Path | None = PATH,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Write one file to ship, preprocessing included, and check it on real images."""
    from leanres.report.card import model_card
    from leanres.runs.layout import read_info
    from leanres.runs.weights import load_weights, weights_file
    from leanres.ship import export as exports

    exports.FORMATS[out.suffix]
    is_run = (target / "run.json").exists()
    if card and not (is_run and out.suffix == ".safetensors"):
        raise UserError("--card tells of a run's weights: give a run folder and a .safetensors")
    preprocess = load_weights(weights_file(target))[2]
    if data is None and is_run:
        dataset = load_run_data(read_info(target), None, path)
    else:
        dataset = load_dataset(data or "cifar10", path, preprocess.size)
    images = (dataset.test or dataset.val or dataset.train).images[: exports.IMAGES]
    done = exports.export(target, out, images, full)
    if card:
        out.with_suffix(".md").write_text(model_card(target, out, dataset), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"path": str(done.path)}))
        return
    typer.echo(
        f"{done.path}: {done.bytes / 2**20:.2f} MiB; of {done.images:,} images"
        f" {100 * done.agreement:.2f} % keep their class, no probability moves by more than"
        f" {done.drift:.2g}"
    )
    if card:
        typer.echo(f"{out.with_suffix('.md')}: its card")
