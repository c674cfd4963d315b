"""`leanres evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import typer

from leanres.cli import options
from leanres.cli.console import console, print_table, say
from leanres.errors import UserError

HEAD_WIDTH = 4  # characters of a class name above its column of the confusion matrix


def evaluate(
    target: Path = options.TARGET,
    data: str | None = options.TARGET_DATA,
    strict: bool = options.STRICT,
    split: Literal["test", "val", "train"] = options.measurement_option(
        "test", help="The split to measure."
    ),
    tta: str = options.measurement_option(
        "auto", help=f"{options.TTA_HELP} A weights file does not know its recipe: none."
    ),
    int8: bool = typer.Option(
        False,
        "--int8-weights",
        help="Round the weights alone to int8 first, a scale per output channel: activations stay"
        " floats, so a file that computes in int8 changes more answers.",
    ),
    precision: str = options.PRECISION,
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    as_json: bool = options.JSON,
) -> None:
    """Measure a trained network: accuracy, NLL, ECE, accuracy per class, confusion matrix.

    Example: leanres evaluate runs/first --tta none
    """
    from leanres.runs.weights import round_to_int8_

    options.check_tta(tta)
    predictor = options.make_predictor(target, device_name, threads, precision)
    if int8:
        round_to_int8_(predictor.model)
    dataset = options.load_target_data(target, predictor.preprocess.size, data, strict)
    images = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    if not images:
        there = " or ".join(dataset.splits)
        raise UserError(f"{dataset.name} has no {split} split: give --split {there}, or other data")
    result = predictor.evaluate(images, tta) | {
        "split": split,
        "int8_weights": int8,
        "device": predictor.device.name,
        "precision": predictor.device.precision,
    }
    if as_json:
        say(json.dumps(result))
    else:
        _print_evaluation(result, images.classes)


def _print_evaluation(result: dict[str, Any], classes: tuple[str, ...]) -> None:
    from leanres.metrics.classification import accuracy_text, other_metrics

    rounded = ", weights alone rounded to int8" if result["int8_weights"] else ""
    say(
        f"{result['split']} accuracy {accuracy_text(result)}\n"
        f"{other_metrics(result)}, {result['params']:,} params{rounded};"
        f" {result['precision']} on {result['device']}"
    )
    shares = ["-" if share is None else f"{100 * share:.2f}" for share in result["per_class"]]
    heads = [name[:HEAD_WIDTH] for name in classes]
    counts = [[str(count) if count else "." for count in row] for row in result["confusion"]]
    column = max(HEAD_WIDTH, len(str(result["n"]))) + 2
    if max(map(len, classes)) + 9 + len(classes) * column > console().width:
        heads, counts = [], [[] for _ in classes]
        say("the confusion matrix is wider than the terminal: --json has it")
    else:
        say("rows: true class; columns: predicted class")
    rows = [[name, share, *row] for name, share, row in zip(classes, shares, counts, strict=True)]
    print_table(["class", "acc %", *heads], rows)
