"""`leanres evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import typer

from leanres.cli import complete, options
from leanres.cli.console import console, print_table, say
from leanres.errors import shortened

HEAD_WIDTH = 4  # characters of a class name above its column of the confusion matrix
MAX_NAME = 30  # characters of a class name elsewhere: two of them fit in 80 columns
MIN_NAME = 11  # of one beside the confusion matrix, where more do not fit
MAX_CLASSES = 40  # that are printed one a line; of more, the hardest
NUM_PAIRS = 10  # of confused classes, where the matrix does not fit


def evaluate(
    targets: list[Path] = options.TARGETS,
    data: str | None = options.TARGET_DATA,
    strict: bool = options.STRICT,
    split: Literal["test", "val", "train"] = options.measurement_option(
        "test", help="The split to measure."
    ),
    tta: str = options.measurement_option(
        "auto",
        help=f"{options.TTA_HELP} A weights file does not know its recipe: none.",
        autocompletion=complete.TTA,
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

    Several are measured as an ensemble: each one, the average of their probabilities, and its gain.

    Example: leanres evaluate runs/first --tta none
    """
    from leanres.runs import ensemble
    from leanres.runs.weights import round_to_int8_

    options.check_tta(tta)
    ensemble.check_targets(targets)
    predictors = {
        str(target): options.make_predictor(target, device_name, threads, precision)
        for target in targets
    }
    ensemble.check_alike(predictors)
    first, predictor = targets[0], predictors[str(targets[0])]
    if int8:
        for each in predictors.values():
            round_to_int8_(each.model)
    dataset = options.load_target_data(first, predictor.preprocess, data, strict)
    images, notes = ensemble.common_images(targets, dataset, split)
    options.print_notes(notes)
    facts = {
        "int8_weights": int8,
        "device": predictor.device.name,
        "precision": predictor.device.precision,
    }
    result = ensemble.measured(predictors, images, split, tta) | facts
    if as_json:
        say(json.dumps(result))
    elif len(targets) > 1:
        _print_ensemble(result)
    else:
        _print_evaluation(result, images.classes)


def _print_ensemble(result: dict[str, Any]) -> None:
    """A row for each network, their mean and the ensemble, and what it is better by."""
    from leanres.metrics.classification import METRICS, accuracy_text, other_metrics
    from leanres.runs.ensemble import gain_lines

    whole, rows = result["ensemble"], list[list[str]]()
    shown = {key: METRICS[key] for key in ("accuracy", "accuracy_tta", "nll", "ece", "macro_f1")}
    if whole["tta"] == "none":
        del shown["accuracy_tta"]
    named = [(row["target"], row) for row in result["members"]]
    for name, row in [*named, ("mean", result["mean"]), ("ensemble", whole)]:
        cells = (metric.text(row[key]) for key, metric in shown.items())
        rows.append([shortened(name, MAX_NAME), *cells])
    print_table(["network", *(metric.label for metric in shown.values())], rows)
    rounded = ", weights alone rounded to int8" if result["int8_weights"] else ""
    say(
        f"{result['split']} accuracy of the ensemble {accuracy_text(whole)}\n"
        f"{other_metrics(whole, short=True)}; {len(named)} networks, {result['params']:,} params in"
        f" all{rounded}; {result['precision']} on {result['device']}"
    )
    say("\n".join(gain_lines(result)))


def _print_evaluation(result: dict[str, Any], classes: tuple[str, ...]) -> None:
    from leanres.metrics.classification import accuracy_text, few_images, other_metrics

    rounded = ", weights alone rounded to int8" if result["int8_weights"] else ""
    say(
        f"{result['split']} accuracy {accuracy_text(result)}\n"
        f"{other_metrics(result, short=True)}, {result['params']:,} params{rounded};"
        f" {result['precision']} on {result['device']}"
    )
    if few := few_images([sum(row) for row in result["confusion"]], classes, result["split"]):
        say(few)
    for most in (MAX_NAME, MIN_NAME):
        names = [shortened(name, most) for name in classes]
        if _matrix_width(names, result["n"]) <= console().width:
            say("rows: true class; columns: predicted class")
            _print_classes(names, result, True)
            return
    names = [shortened(name, MAX_NAME) for name in classes]
    _print_classes(names, result, False)
    _print_pairs(names, result["confusion"])


def _matrix_width(names: list[str], n: int) -> int:
    """Characters that a line of the confusion matrix takes."""
    from rich.cells import cell_len

    heads = max(cell_len(name[:HEAD_WIDTH]) for name in names)
    return max(map(cell_len, names)) + 9 + len(names) * (max(heads, len(str(n))) + 2)


def _print_classes(names: list[str], result: dict[str, Any], with_matrix: bool) -> None:
    """The accuracy of each class, perhaps with its row of the confusion matrix.

    Without the matrix, of many classes the hardest.
    """
    shares, order = result["per_class"], list(range(len(names)))
    if len(names) > MAX_CLASSES and not with_matrix:
        order.sort(key=lambda k: (shares[k] is None, shares[k] or 0))
        order = order[:MAX_CLASSES]
        say(f"the {MAX_CLASSES} hardest of {len(names):,} classes (--json has all)")
    rows = []
    for k in order:
        share = "-" if shares[k] is None else f"{100 * shares[k]:.2f}"
        counts = [str(count) if count else "." for count in result["confusion"][k]]
        rows.append([names[k], share, *(counts if with_matrix else [])])
    heads = [name[:HEAD_WIDTH] for name in names] if with_matrix else []
    print_table(["class", "acc %", *heads], rows)


def _print_pairs(names: list[str], confusion: list[list[int]]) -> None:
    """The classes that are confused most often, where the matrix is too wide for the terminal."""
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: -pair[0])
    rows = [
        [names[true], names[predicted], f"{count:,}", f"{100 * count / sum(confusion[true]):.1f}"]
        for count, true, predicted in pairs[:NUM_PAIRS]
    ]
    say("most confused classes (--json has the whole matrix)")
    print_table(["true class", "predicted class", "images", "share %"], rows, ["predicted class"])
