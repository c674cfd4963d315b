"""`leanres evaluate`, `leanres predict`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import (
    DEVICE,
    PATH,
    STRICT,
    TARGET,
    THREADS,
    load_dataset,
    load_run_data,
    with_tta,
)
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.runs.predictor import Predictor


def evaluate(
    target: Path = TARGET,
    data: str | None = typer.Option(
        None, help="cifar10, digits, or a folder; default: what the run was trained on, or cifar10."
    ),
    path: Path | None = PATH,
    strict: bool = STRICT,
    split: str = typer.Option("test", help="test, val or train."),
    tta: str = typer.Option(
        "flip-shift",
        help="none, flip, flip-shift or flip-shift-unsure; the plain figure comes with it.",
    ),
    int8: bool = typer.Option(
        False, "--int8", help="Round the weights to int8 first, a scale per output channel."
    ),
    device_name: str = DEVICE,
    threads: int = THREADS,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure a trained network: accuracy, NLL, ECE, per class, confusion."""
    from leanres.metrics.inference import TTA
    from leanres.runs.layout import read_info
    from leanres.runs.weights import round_to_int8_

    TTA[tta]
    predictor = _load(target, device_name, threads)
    if int8:
        round_to_int8_(predictor.model)
    if data is None and (target / "run.json").exists():
        info = read_info(target)
        # what the run held out of train is val here too
        dataset = load_run_data(info, None, path).with_val(info["recipe"].get("val", 0))
    else:
        dataset = load_dataset(data or "cifar10", path, predictor.preprocess.size, strict)
    chosen = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    if split not in chosen:
        raise UserError(f"split {split!r}: give test, val or train")
    images = chosen[split]
    if images is None:
        raise UserError(f"{dataset.name} has no {split} split: give --split train, or other data")
    device = predictor.device
    result = predictor.evaluate(images, tta) | {
        "split": split,
        "int8": int8,
        "device": device.name,
        "precision": device.precision,
    }
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(result, images.classes)


def _load(target: Path, device: str, threads: int) -> Predictor:
    import torch

    from leanres.runs.predictor import load_predictor

    if threads:
        torch.set_num_threads(threads)
    return load_predictor(target, device)


def _print(result: dict[str, Any], classes: tuple[str, ...]) -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.metrics.accuracy import wilson_interval

    n = result["n"]
    low, high = wilson_interval(round(result["accuracy"] * n), n)
    out = console()
    out.print(
        f"{result['split']} accuracy {100 * result['accuracy']:.2f} % of {n:,} (95 % interval"
        f" {100 * low:.2f} to {100 * high:.2f}){with_tta(result)}\nNLL {result['nll']:.4f} nats,"
        f" ECE {100 * result['ece']:.2f} %, {result['params']:,} params"
        + (", weights as int8" if result["int8"] else "")
        + f"; {result['precision']} on {result['device']}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("class", "accuracy %", *classes):
        table.add_column(title, justify="left" if title == "class" else "right", no_wrap=True)
    for name, share, row in zip(classes, result["per_class"], result["confusion"], strict=True):
        shown = "-" if share is None else f"{100 * share:.2f}"
        table.add_row(name, shown, *(str(count) if count else "." for count in row))
    out.print("rows: true class; columns: predicted")
    out.print(table)


def predict(
    target: Path = TARGET,
    files: list[Path] = typer.Argument(help="Image files, or folders of them."),
    top: int = typer.Option(3, min=1, help="Classes to show per image."),
    tta: str = typer.Option("none", help="none, flip, flip-shift or flip-shift-unsure."),
    as_csv: Path | None = typer.Option(None, "--csv", help="Write ID,Labels to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
    strict: bool = STRICT,
    device_name: str = DEVICE,
    threads: int = THREADS,
) -> None:
    """Name what is in images: the likeliest classes and how sure the network is."""
    from leanres.metrics.inference import TTA
    from leanres.runs.predictor import Prediction, find_images

    TTA[tta]
    predictor = _load(target, device_name, threads)
    top = min(top, len(predictor.preprocess.classes))
    outcomes = list(predictor.predict(find_images(files), tta, top))
    good = [o for o in outcomes if isinstance(o, Prediction)]
    bad = [o for o in outcomes if not isinstance(o, Prediction)]
    for image in bad:
        if strict or not good:
            raise UserError(f"{image.path} cannot be read: {image.reason}")
        typer.echo(f"note: {image.path} cannot be read: {image.reason}; skipped", err=True)
    if as_csv is not None:
        _write_csv(as_csv, good)
    elif as_json:
        for o in good:
            ranked = [{"class": c, "prob": p} for c, p in zip(o.classes, o.probs, strict=True)]
            typer.echo(json.dumps({"path": str(o.path), "top": ranked}))
    else:
        _print_predictions(good)


def _write_csv(path: Path, predictions: list[Any]) -> None:
    try:
        # a name of other bytes than UTF-8 is written as those bytes
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["ID", "Labels"])
            writer.writerows([p.path.stem, p.classes[0]] for p in predictions)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    typer.echo(f"{len(predictions)} predictions written to {path}")


def _print_predictions(predictions: list[Any]) -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.data.sources.folder import printable

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("sure", justify="right")
    table.add_column("then")
    for p in predictions:
        others = zip(p.classes[1:], p.probs[1:], strict=True)
        then = ", ".join(f"{name} {100 * prob:.1f} %" for name, prob in others)
        table.add_row(printable(p.path), p.classes[0], f"{100 * p.probs[0]:.1f} %", then)
    console().print(table)
