"""`leanres predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say
from leanres.errors import UserError
from leanres.io import csv_text, one_line

if TYPE_CHECKING:
    from leanres.data.greys import GreyCounts
    from leanres.data.image_files import Unreadable
    from leanres.data.unlabelled import Unlabelled
    from leanres.runs.predictor import Prediction

PAGE = 1000  # rows of a printed table: its columns are as wide as these need


def predict(
    target: Path = options.TARGET,
    files: list[Path] = typer.Argument(
        metavar="IMAGES",
        help="Image files, folders of them (subfolders too), or batches without labels: a .npy, a"
        " .npz, or a pickled dict of arrays.",
    ),
    strict: bool = options.STRICT,
    top: int | None = options.measurement_option(
        None, min=1, help="Classes to give per image. Default: 3, in a CSV file 1."
    ),
    tta: str = typer.Option(
        "none", help="Test-time augmentation: none, flip, flip-shift, flip-shift-unsure or auto."
    ),
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    as_csv: Path | None = options.output_option(
        None, "--csv", help="Write columns ID, Labels and Probability to this file."
    ),
    ids: Literal["path", "stem"] = options.output_option(
        "path",
        "--id",
        help="What names an image: path, relative to the folder given, or stem, the file's name"
        " without its suffix.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per image."),
) -> None:
    """Classify images: the most likely classes and their probabilities.

    Example: leanres predict runs/first photos/ --csv labels.csv
    """
    from leanres.data.greys import GreyCounts
    from leanres.data.unlabelled import find_unlabelled

    options.check_tta(tta)
    predictor = options.make_predictor(target, device_name, threads)
    images = find_unlabelled(files, ids)
    greys = GreyCounts(predictor.preprocess.whites)
    top = min(top or (1 if as_csv else 3), len(predictor.preprocess.classes))
    with options.progress_bar(as_csv is not None or not sys.stdout.isatty()) as progress:
        outcomes = _counted(predictor.predict(images, tta, top), images, progress)
        found = _readable(outcomes, files, strict, greys)
        if as_csv is not None:
            count = _write_csv(as_csv, found, top)
        elif as_json:
            _print_json(found)
        else:
            _print_tables(found)
    options.print_notes([*greys.notes()])
    if as_csv is not None:
        say(f"{count:,} predictions written to {as_csv}")


def _counted(
    outcomes: Iterable[Prediction | Unreadable],
    images: Unlabelled,
    progress: Callable[[str, int, int], None],
) -> Iterator[Prediction | Unreadable]:
    """The same outcomes, each counted on the progress bar."""
    total = len(images) if sys.stderr.isatty() else 0
    for done, outcome in enumerate(outcomes, 1):
        yield outcome
        progress("classifying images", done, total)


def _readable(
    outcomes: Iterable[Prediction | Unreadable], files: list[Path], strict: bool, greys: GreyCounts
) -> Iterator[Prediction]:
    """The predictions; what cannot be read is noted and skipped, grey values are counted.

    UserError for the first one where `strict`, and where nothing can be read.
    """
    from leanres.runs.predictor import Prediction

    any_read, problem = False, f"no images in {', '.join(map(str, files))}"
    for outcome in outcomes:
        if isinstance(outcome, Prediction):
            any_read = True
            if outcome.greys:
                greys.add(outcome.greys)
            yield outcome
            continue
        problem = f"{outcome.path} cannot be read: {outcome.reason}"
        if strict:
            raise UserError(problem)
        options.print_notes([f"{problem}; skipped"])
    if not any_read:
        raise UserError(problem)


def _write_csv(path: Path, predictions: Iterable[Prediction], top: int) -> int:
    """Write a row per image as it comes; the number of them."""
    from leanres.io import written

    with written(path) as file:
        # a name in another encoding than UTF-8 keeps its bytes
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
        writer = csv.writer(text)
        heads = [[f"Labels_{i}", f"Probability_{i}"] for i in range(2, top + 1)]
        writer.writerow(["ID", "Labels", "Probability", *(name for pair in heads for name in pair)])
        count = 0
        for count, p in enumerate(predictions, 1):  # noqa: B007  # it is the result
            ranked = zip(map(csv_text, p.classes), (f"{x:.6f}" for x in p.probs), strict=True)
            writer.writerow([csv_text(p.id), *(cell for pair in ranked for cell in pair)])
        text.detach()
    return count


def _print_json(predictions: Iterable[Prediction]) -> None:
    for p in predictions:
        ranked = [{"class": c, "prob": x} for c, x in zip(p.classes, p.probs, strict=True)]
        names = {"id": one_line(p.id), "path": one_line(str(p.path))}
        say(json.dumps(names | {"top": ranked}))


def _print_tables(predictions: Iterator[Prediction]) -> None:
    while page := list(islice(predictions, PAGE)):
        rows = []
        for p in page:
            first, *others = (f"{100 * prob:.1f} %" for prob in p.probs)
            then = zip(p.classes[1:], others, strict=True)
            rows.append([p.id, p.classes[0], first, ", ".join(f"{c} {prob}" for c, prob in then)])
        print_table(["image", "class", "prob", "then"], rows, left=("class", "then"))
