"""`leanres predict`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say
from leanres.errors import UserError
from leanres.io import csv_text

if TYPE_CHECKING:
    from leanres.runs.predictor import Prediction


def predict(
    target: Path = options.TARGET,
    files: list[Path] = typer.Argument(metavar="FILES", help="Image files, or folders of them."),
    strict: bool = options.STRICT,
    top: int = options.measurement_option(3, min=1, help="Classes to show per image."),
    tta: str = typer.Option(
        "none", help="Test-time augmentation: none, flip, flip-shift or flip-shift-unsure."
    ),
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    as_csv: Path | None = options.output_option(
        None, "--csv", help="Write columns ID (the file's name) and Labels to this file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Classify images: the most likely classes and their probabilities.

    Example: leanres predict runs/first photos/ --csv labels.csv
    """
    from leanres.metrics.inference import TTA
    from leanres.runs.predictor import Prediction, find_images

    TTA[tta]
    predictor = options.make_predictor(target, device_name, threads)
    top = min(top, len(predictor.preprocess.classes))
    outcomes = list(predictor.predict(find_images(files), tta, top))
    read = [o for o in outcomes if isinstance(o, Prediction)]
    for image in (o for o in outcomes if not isinstance(o, Prediction)):
        problem = f"{image.path} cannot be read: {image.reason}"
        if strict or not read:
            raise UserError(problem)
        options.print_notes([f"{problem}; skipped"])
    if as_csv is not None:
        _write_predictions(as_csv, read)
    elif as_json:
        for p in read:
            ranked = [{"class": c, "prob": x} for c, x in zip(p.classes, p.probs, strict=True)]
            say(json.dumps({"path": str(p.path), "top": ranked}))
    else:
        _print_predictions(read)


def _write_predictions(path: Path, predictions: list[Prediction]) -> None:
    from leanres.io import write_bytes

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["ID", "Labels"])
    writer.writerows([csv_text(p.path.stem), csv_text(p.classes[0])] for p in predictions)
    # a name in another encoding than UTF-8 keeps its bytes
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))
    say(f"{len(predictions)} predictions written to {path}")


def _print_predictions(predictions: list[Prediction]) -> None:
    rows = []
    for p in predictions:
        first, *others = (f"{100 * prob:.1f} %" for prob in p.probs)
        then = ", ".join(f"{name} {prob}" for name, prob in zip(p.classes[1:], others, strict=True))
        rows.append([str(p.path), p.classes[0], first, then])
    print_table(["image", "class", "prob", "then"], rows, left=("class", "then"))
