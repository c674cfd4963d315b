"""Several runs side by side: one table, groups of one recipe, and whether differences are real."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from leanres.errors import UserError
from leanres.metrics.statistics import holm, mcnemar, p_value, paired_seeds
from leanres.models.config import ModelConfig
from leanres.models.cost import Summary, summarize
from leanres.models.zoo import config_from_dict, resolve
from leanres.report.record import Record
from leanres.runs.ledger import differences, shown


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seed alone."""

    name: str
    records: tuple[Record, ...]

    def by_seed(self) -> dict[int, float]:
        """Accuracy of each seed; of two runs with one seed the last."""
        return {
            record.info["recipe"].get("seed", 0): record.result["accuracy"]
            for record in self.records
            if record.result
        }


def config_of(record: Record) -> ModelConfig:
    """The run's network shape. UserError where this version of leanres does not know it."""
    # A folder older than the entry "network" has the name alone.
    model = record.info.get("network", record.info["recipe"]["model"])
    config = config_from_dict(model) if isinstance(model, Mapping) else resolve(model)
    return replace(config, num_classes=len(record.classes))


def cost(record: Record) -> Summary:
    """Parameters, MACs and receptive field of the run's network at the size of its images."""
    size = int(record.info["preprocess"]["size"])
    return summarize(config_of(record), (3, size, size))


def check_comparable(records: Sequence[Record]) -> None:
    """UserError where two runs were not judged on the same images; it names both fingerprints."""
    first = records[0]
    for other in records[1:]:
        if first.split != other.split:
            raise UserError(
                f"{first.name} was measured on {first.split}, {other.name} on {other.split}:"
                " compare runs that were measured on the same images"
            )
        # Images that were held out of train are told by it, and by their labels below.
        for split in ("test",) if first.split == "test" else ("test", "val", "train"):
            _check_prints(first, other, split)
        a, b = first.predictions, other.predictions
        if a is not None and b is not None and not torch.equal(a.labels, b.labels):
            raise UserError(
                f"{first.name} and {other.name} were judged on different {first.split} images, or"
                " in another order: compare runs that held out the same ones"
            )


def _check_prints(first: Record, other: Record, split: str) -> None:
    ours, theirs = (
        str(record.info["data"]["fingerprints"].get(split)) for record in (first, other)
    )
    if ours != theirs:
        raise UserError(
            f"{first.name} and {other.name} are of different data ({split} fingerprints"
            f" {ours[:16]} and {theirs[:16]}): compare runs on the same images"
        )


def table_row(record: Record) -> dict[str, Any]:
    """The run's architecture, training and outcome in one row; None for what it has not."""
    recipe, config, summary = record.info["recipe"], config_of(record), cost(record)
    model = recipe["model"]
    result: dict[str, Any] = record.result or {}
    return {
        "run": record.name,
        "network": model if isinstance(model, str) else f"own {model.get('family', '')}",
        "parameters": summary.params,
        "accuracy": result.get("accuracy"),
        "with TTA": result.get("accuracy_tta") if result.get("tta") != "none" else None,
        "NLL": result.get("nll"),
        "ECE": result.get("ece"),
        "blocks": _listed(config, "depths"),
        "channels": _listed(config, "widths"),
        "MACs": summary.macs,
        "receptive field": summary.receptive_field,
        "augmentation": ", ".join(_step(step) for step in recipe.get("augment", [])) or "none",
        "optimizer": recipe.get("optimizer"),
        "lr": recipe.get("lr"),
        "batch": recipe.get("batch_size"),
        "epochs": recipe.get("epochs"),
        "seed": recipe.get("seed"),
        "seconds": result.get("train_seconds"),
    }


def _listed(config: ModelConfig, field: str) -> str | None:
    values = getattr(config, field, None)
    return "-".join(map(str, values)) if isinstance(values, tuple) else None


def _step(step: Any) -> str:
    name, settings = step if isinstance(step, list) else (step, {})
    inside = ", ".join(f"{key}={shown(value)}" for key, value in settings.items())
    return f"{name}({inside})" if inside else str(name)


def groups(records: Sequence[Record]) -> list[Group]:
    """The runs by recipe, seeds apart, each group named by the settings in which it differs."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(json.dumps(_seedless(record), sort_keys=True), []).append(record)
    recipes = [_seedless(members[0]) for members in found.values()]
    return [
        Group(_group_name(recipe, recipes, members), tuple(members))
        for recipe, members in zip(recipes, found.values(), strict=True)
    ]


def _seedless(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.info["recipe"].items() if key != "seed"}


def _group_name(
    recipe: dict[str, Any], recipes: list[dict[str, Any]], members: list[Record]
) -> str:
    if len(members) == 1:
        return members[0].name
    keys = dict.fromkeys(key for other in recipes for key, _, _ in differences(recipe, other))
    told = ", ".join(f"{key} = {shown(recipe.get(key))}" for key in keys)
    return told or " / ".join(record.name for record in members)


def verdicts(records: Sequence[Record]) -> list[str]:
    """Sentences on which differences are real.

    Groups of several seeds: paired over seeds. Two runs: McNemar. More runs: each against the
    best by McNemar, corrected for their number by Holm's method.
    """
    judged = [r for r in records if r.result is not None and r.predictions is not None]
    if len(judged) < 2:
        return ["Fewer than two of these runs have a result: there is nothing to compare yet."]
    found = groups(judged)
    repeated = [group for group in found if len(group.by_seed()) > 1]
    if len(repeated) > 1:
        return [_seed_verdict(a, b) for a, b in combinations(repeated, 2)]
    if len(judged) == 2:
        first, second = judged
        return [_image_test(first, second).words(first.name, second.name)]
    return _against_best(judged)


def _seed_verdict(first: Group, second: Group) -> str:
    ours, theirs = first.by_seed(), second.by_seed()
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        return (
            f"{first.name} and {second.name} share {len(shared)} seeds: no verdict, pairs need at"
            " least 2 (train both with the same seeds)."
        )
    test = paired_seeds([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
    return test.words(first.name, second.name)


def _image_test(first: Record, second: Record) -> Any:
    assert first.predictions is not None
    assert second.predictions is not None
    return mcnemar(first.predictions.correct, second.predictions.correct)


def _against_best(records: list[Record]) -> list[str]:
    best = max(records, key=lambda record: (record.result or {})["accuracy"])
    others = [record for record in records if record is not best]
    tests = [_image_test(best, other) for other in others]
    corrected = holm([test.p for test in tests])
    lines = []
    for other, test, p in zip(others, tests, corrected, strict=True):
        told = "is worse than" if p < 0.05 else "is not distinguishable from"
        lines.append(
            f"{other.name} {told} {best.name}: {100 * test.difference:+.2f} points (95 % interval"
            f" {100 * test.low:+.2f} to {100 * test.high:+.2f}), {p_value(p)} after Holm's"
            f" correction for {len(others)} comparisons, n = {test.n:,} images (exact McNemar)."
        )
    return lines
