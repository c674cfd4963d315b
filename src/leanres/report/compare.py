"""Comparing runs: one table, groups of runs with the same recipe, and significance tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from leanres.errors import UserError
from leanres.metrics.classification import METRICS
from leanres.metrics.statistics import PairedDifference, holm, mcnemar, paired_seeds
from leanres.report.record import Record
from leanres.runs.ledger import shown


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ only in their seed."""

    name: str
    records: tuple[Record, ...]

    def by_seed(self) -> dict[int, float]:
        """Accuracy of each seed; of two runs with the same seed that of the last."""
        return {
            record.info["recipe"]["seed"]: record.result["accuracy"]
            for record in self.records
            if record.result
        }


def check_comparable(records: Sequence[Record]) -> None:
    """UserError if two runs were not measured on the same images; it names both fingerprints."""
    first = records[0]
    for other in records[1:]:
        if first.split != other.split:
            raise UserError(
                f"{first.name} was measured on {first.split}, {other.name} on {other.split}:"
                " compare runs that were measured on the same images"
            )
        # Val images that were held out of train depend on it; their labels are compared below.
        for split in ("test",) if first.split == "test" else ("test", "val", "train"):
            prints = [str(r.info["data"]["fingerprints"].get(split)) for r in (first, other)]
            if prints[0] != prints[1]:
                raise UserError(
                    f"{first.name} and {other.name} were trained on different data ({split}"
                    f" fingerprints {prints[0][:16]} and {prints[1][:16]}): compare runs on the"
                    " same images"
                )
        a, b = first.predictions, other.predictions
        if a is not None and b is not None and not torch.equal(a.labels, b.labels):
            raise UserError(
                f"{first.name} and {other.name} were measured on different {first.split} images, or"
                " in another order: compare runs that held out the same ones"
            )


def table_row(record: Record) -> dict[str, Any]:
    """The run's architecture, training and METRICS in one row: column -> value, None if missing."""
    recipe, config, summary = record.info["recipe"], record.config, record.cost
    result = dict(record.result or {})
    if result.get("tta") == "none":
        del result["accuracy_tta"]  # the same as without
    return {
        "run": record.name,
        "network": record.network,
        "parameters": summary.params,
        **{metric.label: result.get(key) for key, metric in METRICS.items()},
        "blocks": _joined(getattr(config, "depths", None)),
        "channels": _joined(getattr(config, "widths", None)),
        "MACs": summary.macs,
        "receptive field": summary.receptive_field,
        "augmentation": ", ".join(_spec_text(*spec) for spec in recipe["augment"]) or "none",
        "optimizer": recipe["optimizer"],
        "lr": recipe["lr"],
        "batch": recipe["batch_size"],
        "epochs": recipe["epochs"],
        "seed": recipe["seed"],
        "seconds": result.get("train_seconds"),
    }


def _joined(values: object) -> str | None:
    return "-".join(map(str, values)) if isinstance(values, tuple) else None


def _spec_text(name: str, settings: dict[str, Any]) -> str:
    inside = ", ".join(f"{key}={shown(value)}" for key, value in settings.items())
    return f"{name}({inside})" if inside else name


def cell_text(column: str, value: Any) -> str:
    """A value of `table_row` as text: metrics as METRICS has them, "-" if it is missing."""
    if value is None:
        return "-"
    for metric in METRICS.values():
        if metric.label == column:
            return metric.text(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def groups(records: Sequence[Record]) -> list[Group]:
    """Runs grouped by recipe, ignoring the seed; a group is named by the settings that differ."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(json.dumps(_settings(record), sort_keys=True), []).append(record)
    recipes = [_settings(members[0]) for members in found.values()]
    return [Group(_group_name(members, recipes), tuple(members)) for members in found.values()]


def _settings(record: Record) -> dict[str, Any]:
    """The recipe without its seed; the settings of a custom network as `model.widths`, ..."""
    recipe = {key: value for key, value in record.info["recipe"].items() if key != "seed"}
    model = recipe["model"]
    own = model if isinstance(model, dict) else {}
    return recipe | {"model": record.network} | {f"model.{key}": own[key] for key in own}


def _group_name(members: list[Record], recipes: list[dict[str, Any]]) -> str:
    if len(members) == 1:
        return members[0].name
    recipe = _settings(members[0])
    common = (key for key in recipe if all(key in other for other in recipes))
    changed = [key for key in common if any(recipe[key] != other[key] for other in recipes)]
    named = ", ".join(f"{key} = {shown(recipe[key])}" for key in changed)
    return named or " / ".join(record.name for record in members)


def verdicts(records: Sequence[Record]) -> list[str]:
    """Sentences that say which runs or recipes differ significantly.

    Groups of several seeds are compared by a t-test paired over seeds. Two runs are compared by
    McNemar's test, more than two each with the best one, corrected for their number by Holm's
    method.
    """
    measured = [r for r in records if r.result is not None and r.predictions is not None]
    if len(measured) < 2:
        return ["Fewer than two of these runs have a result: there is nothing to compare yet."]
    repeated = [group for group in groups(measured) if len(group.by_seed()) > 1]
    if len(repeated) > 1:
        return [_seed_verdict(a, b) for a, b in combinations(repeated, 2)]
    if len(measured) == 2:
        first, second = measured
        return [_image_test(first, second).sentence(first.name, second.name)]
    return _against_best(measured)


def _seed_verdict(first: Group, second: Group) -> str:
    ours, theirs = first.by_seed(), second.by_seed()
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return f"{first.name} and {second.name} share no seed: train both with the same seeds."
    test = paired_seeds([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
    return test.sentence(first.name, second.name)


def _image_test(first: Record, second: Record) -> PairedDifference:
    assert first.predictions is not None
    assert second.predictions is not None
    return mcnemar(first.predictions.correct, second.predictions.correct)


def _against_best(records: list[Record]) -> list[str]:
    best = max(records, key=lambda record: (record.result or {})["accuracy"])
    others = [record for record in records if record is not best]
    tests = [_image_test(best, other) for other in others]
    corrected = holm([test.p for test in tests if test.p is not None])
    detail = f"p is that of McNemar's test after Holm's correction for {len(others)} comparisons."
    return [
        replace(test, p=p, detail=detail).sentence(best.name, other.name)
        for other, test, p in zip(others, tests, corrected, strict=True)
    ]
