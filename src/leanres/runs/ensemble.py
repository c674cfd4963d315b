"""Evaluate networks: one, or several and what the average of their probabilities is better by."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics.calibration import log_probs
from leanres.metrics.classification import CHOICE, METRICS
from leanres.metrics.statistics import PairedDifference, format_p, gain_over_mean, mcnemar
from leanres.models.cost import count_params
from leanres.models.preprocess import Preprocess
from leanres.runs.images import keys_of, read_images, unseen, unseen_too
from leanres.runs.layout import load_data_of
from leanres.runs.predictor import Predictor, figures, load_predictor
from leanres.runs.run_json import INFO, read_info
from leanres.runs.weights import WEIGHTS

OWN_TTA = "each network's own"


def evaluate(
    targets: Path | str | Sequence[Path | str],
    data: Dataset | None = None,
    *,
    split: str = "test",
    tta: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Measure a run folder or weights file; of several, each and their ensemble. JSON-able.

    One gives what `Predictor.evaluate` does, several what `measure_ensemble` does. `data` is by
    default what the first run was trained on; images that a run was trained on are left out, and
    `notes` say so. `chosen_by` marks figures on the val images that chose the network's epoch,
    which are optimistic. UserError for networks that do not take the same images, or no such split.
    """
    paths = [Path(targets)] if isinstance(targets, Path | str) else list(map(Path, targets))
    check_targets(paths)
    predictors = {str(path): load_predictor(path, device, precision) for path in paths}
    check_alike(predictors)
    first, notes = paths[0], list[str]()
    info = read_info(first) if (first / INFO).exists() else None
    if data is None and info is None:
        raise UserError(f"{first} does not know its data: give data")
    dataset = load_data_of(info) if data is None and info is not None else data
    assert dataset is not None  # for mypy
    if info is not None:
        dataset, notes = unseen(first, info, dataset)
    images, more = common_images(paths, dataset, split)
    return measured(predictors, images, split, tta) | {"notes": notes + more}


def measured(
    predictors: Mapping[str, Predictor], images: Split, split: str, tta: str
) -> dict[str, Any]:
    """The figures of one network, or of several and their ensemble; with `split`.

    A network whose epoch was chosen on these val images has the keys of CHOICE.
    """
    targets = list(predictors)
    if len(targets) == 1:
        result = predictors[targets[0]].evaluate(images, tta) | _choice(targets[0], images, split)
    else:
        result = measure_ensemble(predictors, images, tta)
        for row in result["members"]:
            row |= _choice(row["target"], images, split)
    return result | {"split": split}


def _choice(target: str, images: Split, split: str) -> dict[str, Any]:
    """What run.json says of the epoch that these val images chose, where they did; else empty."""
    folder = Path(target)
    if split != "val" or not (folder / INFO).exists():
        return {}
    result = read_info(folder).get("result", {})
    chosen = {key: result[key] for key in CHOICE if key in result}
    if chosen and np.isin(keys_of(images), read_images(folder).of("val")).any():
        return chosen
    return {}


def check_targets(targets: Sequence[Path]) -> None:
    """UserError for no target, and for one that is named twice."""
    if not targets:
        raise UserError("no network: give a run folder or a weights file")
    seen = set()
    for target in targets:
        weights = target / WEIGHTS if target.is_dir() else target
        if weights.resolve() in seen:
            raise UserError(f"{target} is named twice: give different networks")
        seen.add(weights.resolve())


def check_alike(predictors: Mapping[str, Predictor]) -> None:
    """UserError for two networks that do not take the same images or tell the same classes."""
    (first, one), *others = predictors.items()
    for name, other in others:
        a, b = one.preprocess, other.preprocess
        pairs = {
            "images of {} px": (a.size, b.size),
            "images of {} channels": (a.channels, b.channels),
            "grey images of white {}": _common_whites(a, b),
            "{} classes": (len(a.classes), len(b.classes)),
            "the classes {}": (", ".join(a.classes), ", ".join(b.classes)),
        }
        for text, (mine, theirs) in pairs.items():
            if mine != theirs:
                came = f"{first} has {text.format(mine)}, {name} {text.format(theirs)}"
                raise UserError(f"{came}: an ensemble is of networks for the same images")


def _common_whites(a: Preprocess, b: Preprocess) -> tuple[dict[str, float], ...]:
    """The whites of both, of the kinds of grey values that both know."""
    kinds = a.whites.keys() & b.whites.keys()
    return tuple({kind: whites[kind] for kind in kinds} for whites in (a.whites, b.whites))


def common_images(targets: Sequence[Path], dataset: Dataset, split: str) -> tuple[Split, list[str]]:
    """The images of a split, without those that a later target was trained on, and notes.

    A weights file does not know its training images; a note says so where the data may have them.

    `dataset` is as `unseen` gives it for the first. UserError where there is no such split.
    """
    images = dataset.splits.get(split)
    if images is None:
        there = " or ".join(dataset.splits)
        raise UserError(f"{dataset.name} has no {split} split: give --split {there}, or other data")
    notes = []
    for target in targets:
        if not (target / INFO).exists():
            may_be_seen = (
                dataset.grows and split != "train"
            )  # a published set's test is never train
            told = f"{target} does not know the images that it was trained on: none are left out"
            notes += [told] * may_be_seen
        elif target != targets[0]:
            images, more = unseen_too(images, split, target)
            notes += more
    return images, notes


def measure_ensemble(
    predictors: Mapping[str, Predictor], images: Split, tta: str = "auto"
) -> dict[str, Any]:
    """The figures of each network (`members`), their `mean`, and of the `ensemble`.

    The ensemble's probabilities are the mean of the networks'. `gain_over_mean` and
    `gain_over_best` are differences in accuracy on the same images, with 95 % intervals: the gain
    over a network of those, as one would have without an ensemble, and over the one that is best on
    these images. `params` are those of all networks. UserError for images of other classes.
    """
    labels, members, correct = images.labels.cpu(), [], []
    shape = (2, len(images), len(images.classes))  # without and with test-time augmentation
    total = torch.zeros(shape, dtype=torch.float64)
    for name, predictor in predictors.items():
        predictor.check_classes(images)
        own = predictor.tta if tta == "auto" else tta
        both = predictor.logits_both(images.images, own)
        row = figures(*both, labels, own)
        params = {"params": count_params(predictor.config)}
        members.append({"target": name} | {k: row[k] for k in (*METRICS, "tta", "n")} | params)
        correct.append(both[0].argmax(1) == labels)
        total += torch.stack(both).double().softmax(2)
    plain, augmented = (log_probs(probs) for probs in total / len(members))
    kinds = {row["tta"] for row in members}
    best = max(range(len(members)), key=lambda i: members[i]["accuracy"])
    hits = plain.argmax(1) == labels
    return {
        "n": len(images),
        "members": members,
        "mean": {key: statistics.fmean(row[key] for row in members) for key in METRICS},
        "ensemble": figures(plain, augmented, labels, kinds.pop() if len(kinds) == 1 else OWN_TTA),
        "gain_over_mean": asdict(gain_over_mean(torch.stack(correct), hits)),
        "gain_over_best": asdict(mcnemar(correct[best], hits)),
        "best": members[best]["target"],
        "params": sum(row["params"] for row in members),
    }


def gain_lines(result: Mapping[str, Any]) -> list[str]:
    """What the ensemble is better by than its networks, in two lines; a third where val chose."""
    names = {"gain_over_mean": "the mean network", "gain_over_best": f"{result['best']}, the best"}
    lines = []
    for key, name in names.items():
        gain = PairedDifference(**result[key])
        interval = ""
        if gain.low is not None and gain.high is not None and gain.p is not None:
            bounds = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
            interval = f" (95 % interval {bounds}, {format_p(gain.p)})"
        lines.append(
            f"gain over {name}: {100 * gain.difference:+.2f} points{interval}: {gain.verdict}"
        )
    if count := sum("chosen_by" in row for row in result["members"]):
        lines.append(f"optimistic: these images chose the epoch of {count} of the networks")
    return lines
