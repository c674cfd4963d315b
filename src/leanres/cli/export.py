"""`leanres export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say
from leanres.errors import UserError
from leanres.metrics.classification import percent

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.models.preprocess import Preprocess
    from leanres.ship.check import Check
    from leanres.ship.export import Exported


def export(
    target: Path = options.TARGET,
    out: Path = typer.Argument(
        metavar="OUT",
        help="FILE.safetensors for leanres, FILE.onnx for ONNX runtimes, .tflite for LiteRT.",
    ),
    data: str | None = options.TARGET_DATA,
    full: bool = options.output_option(
        False, "--full", help="Weights as float32 instead of float16."
    ),
    int8: bool = typer.Option(
        False,
        "--int8",
        help="Compute in int8, of .onnx and .tflite: a scale per output channel, ranges of the"
        " activations from training images.",
    ),
    uncalibrated: bool = typer.Option(
        False,
        "--uncalibrated",
        help="Keep the network's own probabilities, instead of dividing its logits by a temperature"
        " that is fitted on val.",
    ),
    card: bool = typer.Option(
        False, "--card", help="Write a model card beside OUT too, with the suffix .md."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Write one file to ship, preprocessing included, and check it on real images.

    What the check measured is written beside it, with the suffix .json added.

    Example: leanres export runs/first first.onnx
    """
    from leanres.io import write_bytes
    from leanres.report.card import model_card
    from leanres.runs.run_json import INFO
    from leanres.runs.weights import load_classifier, weights_file
    from leanres.ship.export import export as write_checked
    from leanres.ship.export import target_of

    target_of(out, int8)
    if card and not ((target / INFO).exists() and out.suffix.lower() == ".safetensors"):
        raise UserError("--card describes a run's weights: give a run folder and a .safetensors")
    preprocess = load_classifier(weights_file(target))[0].preprocess
    options.print_edits(target)
    dataset = options.load_target_data(target, preprocess, data)
    images = _images(dataset, preprocess, int8, uncalibrated)
    done = write_checked(target, out, full=full, **images)
    told = as_json_text(done)
    write_bytes(out.with_name(f"{out.name}.json"), (told + "\n").encode())
    if card:
        write_bytes(
            out.with_suffix(".md"), model_card(target, out, dataset, check=done.rows()).encode()
        )
    if as_json:
        say(told)
        return
    print_check(done)
    _print_calibration(done)
    if card:
        say(f"model card: {out.with_suffix('.md')}")


def _images(
    dataset: Dataset, preprocess: Preprocess, int8: bool, uncalibrated: bool
) -> dict[str, Any]:
    """What `ship.export.export` takes of a data set: images to check on, to quantise and to fit."""
    from leanres.ship.export import CALIBRATION_IMAGES, CHECKED_IMAGES

    split = dataset.test or dataset.val or dataset.train
    few = split.subset(range(min(len(split), CHECKED_IMAGES)))
    known = split.classes == preprocess.classes  # else the labels mean other classes
    step = -(-len(dataset.train) // CALIBRATION_IMAGES) or 1  # of all classes: some are in order
    if int8 and not len(dataset.train):
        raise UserError(f"--int8: {dataset.name} has no training images to calibrate on")
    return {
        "images": few.images,
        "labels": few.labels if known else None,
        "data": dataset.name,
        "calibration": dataset.train.images[::step] if int8 else None,
        "val": dataset.val if known and not uncalibrated else None,
    }


def as_json_text(done: Check) -> str:
    """A check as one line of JSON."""
    return json.dumps(asdict(done) | {"path": str(done.path)})


def print_check(done: Check) -> None:
    """The file and what its check measured, as a table."""
    say(done.path)
    print_table(["check", "measured"], [*done.rows().items()], left=["measured"])


def _print_calibration(done: Exported) -> None:
    """Which temperature the file has, and what it does."""
    if done.ece is None or done.ece_before is None:
        return
    if done.temperature == 1:
        say("probabilities are the network's own: no temperature was fitted")
        return
    say(
        f"calibrated by temperature {done.temperature:.3g}:"
        f" ECE {percent(done.ece_before)} before, {percent(done.ece)} after"
    )
