"""run.json: its fields, their types and ranges; reading it, and the recipe that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from leanres.errors import UserError, first_line
from leanres.io import CheckpointError, parse_json, read_file
from leanres.models.zoo import config_from_dict, fitted, resolve
from leanres.registry import Range, checked, setting_types
from leanres.training.recipe import Recipe, from_dict

INFO = "run.json"
OBJECT: Any = dict
OBJECTS = tuple[OBJECT, ...]
AT_LEAST_0 = Annotated[int, Range(0, 2**63)]
AT_LEAST_1 = Annotated[int, Range(1, 2**31)]
AMOUNT = Annotated[float, Range(0, 1e12)]
SHARE = Annotated[float, Range(0, 1)]
CHANNELS = tuple[float] | tuple[float, float, float] | tuple[float, float, float, float]

# Settings that name table entries: a plugin that adds one may not be imported.
MODEL = str | OBJECT
SPEC = tuple[str, OBJECT]
SPECS = tuple[SPEC, ...]
NAMED = {
    "model": MODEL,
    "selector": MODEL,
    "augment": SPECS,
    "mix": SPECS,
    "optimizer": str,
    "schedule": SPEC,
    "loss": SPEC,
}

# Type -> the fields of this type, objects first. Those marked by "?" may be missing; there may be
# others.
Fields = Mapping[Any, str]
QUEUED: Fields = {
    OBJECT: "recipe origin",
    str: "leanres origin.command? origin.tta? origin.data? origin.device?",
    str | None: "origin.path?",
    Literal["test", "val"]: "origin.measure?",
    bool: "origin.validate?",
    AT_LEAST_0: "origin.threads?",
    AMOUNT: "recipe.val",
    AT_LEAST_1 | None: "origin.size? origin.channels?",
    tuple[AT_LEAST_1, AT_LEAST_1]: "origin.fold?",
}
STARTED: Fields = {
    OBJECT: "network preprocess data data.fingerprints hardware",
    str: "started network.family data.name data.source data.fingerprints.train"
    " data.fingerprints.order hardware.cpu hardware.torch hardware.python hardware.device"
    " hardware.kernels",
    str | None: "commit teacher init? data.fingerprints.val data.fingerprints.test hardware.gpu",
    CHANNELS: "preprocess.mean preprocess.std",
    tuple[str, ...]: "preprocess.classes",
    AT_LEAST_0: "data.val data.test test_reads?",
    AT_LEAST_1: "preprocess.size data.train",
    Annotated[int, Range(1, 1024)]: "hardware.threads",
    float | None: "hardware.memory_gib",
    Literal["float32", "bfloat16"]: "hardware.precision",
    bool: "hardware.compiled",
    AMOUNT: "unfinished_seconds?",
    Annotated[int, Range(1, 2**20)]: "hardware.processes?",
    Literal["exact", "fast"]: "hardware.reduction?",
    OBJECTS: "resumed? plugins?",
}
RESULT: Fields = {
    Literal["test", "val"] | None: "split",
    AT_LEAST_0: "params",
    AMOUNT: "train_seconds matrix_tflops?",
    AT_LEAST_1: "epoch? last_epoch?",
    Literal["val"]: "chosen_by?",
    str: "weights",  # sha256 of the weights file
}
MEASURED: Fields = {
    AT_LEAST_1: "n",
    SHARE: "accuracy accuracy_tta balanced_accuracy macro_precision macro_recall macro_f1",
    float: "nll ece",
    str: "tta",
    tuple[float | None, ...]: "per_class per_class_precision per_class_f1",
    tuple[tuple[AT_LEAST_0, ...], ...]: "confusion",
}


def is_queued(info: Mapping[str, Any]) -> bool:
    """Whether the run has not started yet: `run.enqueue` wrote this run.json."""
    return info.keys() <= {"leanres", "recipe", "origin"}


def read_info(folder: Path, queued: bool = False) -> dict[str, Any]:
    """The content of a run folder's run.json, checked as a whole.

    UserError where the folder is not a run, or has not started, unless `queued` allows that;
    CheckpointError where the file is damaged: it names the field.
    """
    file = folder / INFO
    try:
        info: dict[str, Any] = parse_json(read_file(file))
        _check_info(info)
    except FileNotFoundError:
        raise UserError(not_a_run(folder)) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {first_line(error)}") from None
    if is_queued(info) and not queued:
        raise UserError(f"{folder} has not started yet: `leanres resume {folder}` starts it")
    return info | {"recipe": Recipe().to_dict() | info["recipe"]}


def _check_info(info: dict[str, Any]) -> None:
    _check(info, QUEUED)
    recipe = info["recipe"]
    for name, hint in (setting_types(Recipe) | NAMED).items():
        _check_field(recipe, f"{name}?", hint, "recipe.")
        if name in ("model", "selector") and isinstance(recipe.get(name), dict):
            _check(recipe[name], {str: "family"}, f"recipe.{name}.")
    if not is_queued(info):
        _check(info, STARTED)
    if "result" in info:
        _check(info["result"], RESULT, "result.")
        _check(info["result"], MEASURED if info["result"]["split"] else {}, "result.")


def _check(value: Any, fields: Fields, prefix: str = "") -> None:
    """UserError for the first field that is missing, or of another type than `fields` says."""
    if not isinstance(value, dict):
        raise UserError(f"{prefix[:-1] or 'it'} is not a JSON object")
    for hint, names in fields.items():
        for name in names.split():
            _check_field(value, name, hint, prefix)


def _check_field(value: dict[str, Any], name: str, hint: Any, prefix: str) -> None:
    path = name.removesuffix("?")
    *parents, key = path.split(".")
    for parent in parents:  # objects: a table lists them first
        value = value[parent]
    if key not in value:
        if path == name:
            raise UserError(f"it lacks {prefix}{path}")
        return
    try:
        checked(path, value[key], hint)
    except UserError:
        text = json.dumps(value[key])[:60]
        raise UserError(f"{prefix}{path} cannot be {text}") from None


def not_a_run(folder: Path) -> str:
    """Why a folder is no run; that of a cross-validation holds some."""
    if (folder / "fold-1").is_dir():
        return f"{folder} holds the runs of a cross-validation: name one, as {folder / 'fold-1'}"
    return f"{folder} is not a run folder: it has no {INFO}"


def matches_run(info: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a run.json, or a run in a ledger entry, is a training of `recipe`."""
    return same_network(info, recipe) and from_dict(info["recipe"]) == recipe


def same_network(info: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether the run's network is the one that the recipe names, but for what the data decides."""
    network = info.get("network")  # a run that has not begun has none
    if network is None:
        return True
    begun = config_from_dict(network)
    return begun == fitted(resolve(recipe.model), begun.num_classes, begun.in_channels)


def recipe_as_started(info: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """The recipe of run.json with the network it meant then, and a note if that differs now."""
    # A name may mean another network in a later version, and its weights may even fit.
    recipe = from_dict(info["recipe"])
    if same_network(info, recipe):
        return recipe, []
    note = f"{recipe.model} is another network by now: the run continues with the original one"
    return replace(recipe, model=config_from_dict(info["network"])), [note]
