"""Every field of the four projects' recipes, against a table typed from their descriptions.

So no default of another recipe leaks into one of them. What their documents leave open is
PyTorch's or torchvision's default; what we correct is in docs/systems.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import NAMED_RECIPES, RECIPES

RESULTS = Path(__file__).resolve().parents[2] / "results"

# What a plain PyTorch script does that none of the four deviates from: torch.optim's and
# DataLoader's defaults, cross-entropy, one network, one size, no averaging.
PLAIN: dict[str, Any] = {
    "accumulate": 1,
    "drop_last": False,
    "augment_repeats": 1,
    "normalize_first": False,
    "mix": (),
    "selector": "",
    "progressive_resizing": (),
    "label_smoothing": 0.0,
    "class_weights": "",
    "balanced_sampler": False,
    "teacher": "",
    "momentum": 0.9,
    "nesterov": False,
    "betas": None,  # (0.9, 0.999)
    "weight_decay": 0.0,
    "decay_all": True,
    "head_scale": 1.0,
    "sam_rho": 0.0,
    "schedule": ("constant", {}),
    "warmup": 0.0,
    "freeze_stem_at": 1.0,
    "stop_after": 0,
    "keep_best": False,
    "ema": 0.0,
    "mean": (),
    "std": (),
    "val": 0,
    "precision": "auto",
    "compiled": None,
    "seed": 0,
    "loss": ("cross-entropy", {}),
    "init": "",
    "freeze": "",
    "layer_lr_decay": 1.0,
}
# Only read by muon, by a selector, a teacher or SAM: without effect in all of these.
UNUSED = {
    "bias_lr",
    "head_lr",
    "adamw_weight_decay",
    "select_fraction",
    "distill_weight",
    "distill_temperature",
    "sam_adaptive",
}
CROP_FLIP = (("crop", {"padding": 4}), ("flip", {}))
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
MODIFIED = {
    "epochs": 60,
    "batch_size": 32,
    "augment": (*CROP_FLIP, ("rotation", {"degrees": 15.0, "interpolation": "nearest"})),
    "schedule": ("step", {"every_epochs": 20, "gamma": 0.1}),
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
BUDGET = {
    "epochs": 300,
    "batch_size": 128,
    "augment": (
        ("auto_augment", {}),
        *CROP_FLIP,
        ("perspective", {"distortion": 0.6, "p": 0.5}),
    ),
    "schedule": ("cosine", {"per_epoch": True}),
    "weight_decay": 5e-4,
}
# The measured rows of resnet-custom left the last 80 images of an epoch out: 390 steps, not 391.
RESNET_CUSTOM = {
    "epochs": 24,
    "batch_size": 128,
    "drop_last": True,
    "augment": CROP_FLIP,
    "optimizer": "adam",
    "lr": 1e-3,
    "betas": (0.95, 0.99),
}
ASSIGNMENT = {
    "epochs": 24,
    "batch_size": 512,
    "augment": (*CROP_FLIP, ("cutout", {"size": 8})),
    "optimizer": "sgd",
}
CUSTOM_RESNET = ASSIGNMENT | {"model": "custom-resnet", "normalize_first": True}
ONE_CYCLE = {  # OneCycleLR(max_lr=0.2): rises for 30 % of 24 epochs, from a 25th, by cosines
    "peak_epoch": 7.2,
    "lr_min": 0.008,
    "annihilation": True,
    "shape": "cosine",
    "cycle_momentum": (0.95, 0.85),
}
SEEDS: dict[str, dict[str, Any]] = {
    "modified-resnet-1": MODIFIED | SGD | {"lr": 0.005},
    "modified-resnet-2": MODIFIED | {"optimizer": "adam", "lr": 0.005, "weight_decay": 1e-5},
    "modified-resnet-3": MODIFIED | {"optimizer": "adam", "lr": 0.01},
    "modified-resnet-4": MODIFIED | SGD | {"lr": 0.005},
    "resnet26-97": BUDGET | SGD | {"lr": 0.1},
    "resnet24-9684": BUDGET | SGD | {"lr": 0.1},
    "resnet24-96-text": BUDGET | {"model": "resnet24-96", "optimizer": "adamw", "lr": 1e-3},
    "resnet24-96-code": BUDGET | {"model": "resnet24-96", "optimizer": "adadelta", "lr": 0.1},
    "resnet18": BUDGET | SGD | {"lr": 0.1},
    "resnet-custom": RESNET_CUSTOM,
    "resnet-custom-as-built": RESNET_CUSTOM,
    "custom-resnet-text": CUSTOM_RESNET | {"lr": 0.2, "schedule": ("one-cycle", ONE_CYCLE)},
    "custom-resnet-code": CUSTOM_RESNET | {"lr": 0.01},
    # The assignment names no optimizer, decay or smoothing: those are our answer to it.
    "assignment-s9": ASSIGNMENT
    | {
        "model": "resnet-custom",
        "drop_last": True,
        "lr": 0.5,
        "nesterov": True,
        "weight_decay": 5e-4,
        "head_scale": 0.125,
        "label_smoothing": 0.1,
        "ema": 0.99,
        "schedule": ("one-cycle", {"peak_epoch": 5.0, "lr_min": 0.0004}),
    },
}


@pytest.mark.parametrize("name", SEEDS)
def test_every_field_is_what_the_project_describes(name):
    described = PLAIN | {"model": name} | SEEDS[name]
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert set(described) | UNUSED == fields, "a new field belongs into PLAIN or UNUSED"
    own = {key: getattr(RECIPES[name], key) for key in described}
    assert own == described


def test_every_recipe_of_a_project_is_in_the_table():
    assert {name for name, entry in NAMED_RECIPES.items() if "report" in entry.source} <= set(SEEDS)


@pytest.mark.parametrize("name", [n for n, entry in NAMED_RECIPES.items() if entry.measured])
def test_what_a_measured_recipe_has_otherwise_since_is_named(name):
    """Every setting that the committed runs had differs exactly where `changed` says so."""
    entry = NAMED_RECIPES[name]
    for run in json.loads((RESULTS / entry.measured.results).read_text())["runs"]:
        then = from_dict(run["recipe"])
        differs = {
            field.name
            for field in dataclasses.fields(Recipe)
            if getattr(then, field.name) != getattr(entry.recipe, field.name)
        }
        assert differs - {"seed", "precision", "compiled"} == set(entry.measured.changed)
