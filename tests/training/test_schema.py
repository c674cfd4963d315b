"""The JSON Schema of recipes against the recipes, and against `load_recipe`."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from functools import cache
from typing import Any

import pytest
import tomlkit
from jsonschema import Draft202012Validator

from leanres.augment.registry import AUGMENTS
from leanres.errors import UserError
from leanres.models.zoo import FAMILIES, MODELS
from leanres.registry import Range, Table, notes_of, setting_types
from leanres.training.recipe import Recipe
from leanres.training.recipes import RECIPES, load_recipe, to_toml
from leanres.training.schema import recipe_schema, schema_of


@cache
def validator() -> Draft202012Validator:
    schema = json.loads(json.dumps(recipe_schema()))  # as a file holds it
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def admits(settings: dict[str, Any]) -> bool:
    return validator().is_valid(settings)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_admitted(name):
    settings = tomllib.loads(to_toml(RECIPES[name]))
    assert [error.message for error in validator().iter_errors(settings)] == []
    assert admits({"base": name})


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_is_admitted_as_a_table(name):
    from leanres.models.zoo import config_to_dict, resolve

    given = json.loads(json.dumps(config_to_dict(resolve(name))))
    assert admits({"model": given, "selector": given})


WRONG = [
    {"lr": "high"},
    {"lr": True},
    {"lr": 0},
    {"epochs": 0},
    {"epochs": 1.5},
    {"epochs": "9"},
    {"epoch": 9},
    {"drop_last": 1},
    {"base": "sped"},
    {"optimizer": "adamax"},
    {"optimizer": ["sgd"]},
    {"precision": "float16"},
    {"betas": [0.9]},
    {"betas": [0.9, 1.0]},
    {"augment": "flip"},
    {"augment": ["flipp"]},
    {"augment": [["cutout", {"size": -1}]]},
    {"augment": [["cutout", {"sizes": 8}]]},
    {"augment": [["cutout", {"size": 8}, 1]]},
    {"augment": [[{"size": 8}, "cutout"]]},
    {"schedule": ["cosine", {"per_epoch": 1}]},
    {"mix": ["mixup", ["cutmix", {"beta": 1}]]},
    {"model": "resnet21"},
    {"model": {"widths": [8, 16]}},
    {"model": {"family": "vgg"}},
    {"model": {"family": "speednet", "depth": 1}},
    {"model": {"family": "speednet", "depths": [1]}},
    {"model": {"family": "resnet", "block": "dense"}},
    {"selector": 3},
    {"progressive_resizing": [[0, 0.1]]},
    {"progressive_resizing": [[1, 0.5]]},
    {"progressive_resizing": [0, 0.5]},
    {"mean": [0.5, 0.5]},
    {"mean": [2.0]},
    {"class_weights": "even"},
    {"class_weights": {"cat": 0}},
    {"class_weights": {}},
    {"val": 1.5},
    {"val": -1},
    {"compiled": "yes"},
    {"seed": -1},
]


@pytest.mark.parametrize("settings", WRONG, ids=str)
def test_what_is_wrong_is_refused_by_both(settings, tmp_path):
    assert not admits(settings)
    with pytest.raises(UserError):
        load(settings, tmp_path)


RIGHT = [
    {},
    {"lr": 1, "epochs": 3.0},
    {"betas": [0, 0.5]},
    {"augment": [], "mix": ["cutmix", ["mixup", {}]]},
    {"augment": ["flip", ["cutout", {"size": 12}]]},
    {"schedule": "cosine"},
    {"model": {"family": "speednet", "widths": [8, 16]}, "selector": "resnet20"},
    {"model": {"family": "resnet", "widths": [8], "depths": [1], "stem_width": 4}},
    {"progressive_resizing": [[0, 0.5], [0.5, 1]]},
    {"mean": [0.5], "std": [0.25, 0.25, 0.25]},
    {"class_weights": {"cat": 2, "dog": 0.5}},
    {"val": 0.1},
    {"val": 5000},
    {"base": "plain-sgd", "compiled": False},
]


@pytest.mark.parametrize("settings", RIGHT, ids=str)
def test_what_is_right_is_admitted_by_both(settings, tmp_path):
    assert admits(settings)
    load(settings, tmp_path)


def load(settings: dict[str, Any], folder) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(tomlkit.dumps(settings))
    return load_recipe(str(path))


def test_every_range_ends_where_the_recipe_says():
    for name, hint in setting_types(Recipe).items():
        for bounds in (note for note in notes_of(hint) if isinstance(note, Range)):
            many = name == "betas"
            for value in (bounds.low, bounds.high):
                assert admits({name: [value, value] if many else value}), name
            for value in (bounds.low - 1, 2 * bounds.high + 1):
                assert not admits({name: [value, value] if many else value}), name


def test_every_setting_says_what_it_is_and_its_default():
    properties = recipe_schema()["properties"]
    assert list(properties) == ["base", *setting_types(Recipe)]
    for name, schema in properties.items():
        assert len(schema["description"]) > 5
        assert schema["default"] == ("speed" if name == "base" else Recipe().to_dict()[name])
        assert len(schema) > 2, name  # a setting without a type would admit anything


def test_an_entry_that_a_user_adds_is_admitted(monkeypatch):
    def fog(images, draw, density: float = 0.5):
        return images

    monkeypatch.setitem(AUGMENTS, "fog", fog)
    schema = Draft202012Validator(recipe_schema())
    assert schema.is_valid({"augment": ["fog", ["fog", {"density": 1}]]})
    assert not schema.is_valid({"augment": [["fog", {"density": "thick"}]]})


def test_of_a_type_that_is_not_known_everything_is_admitted():
    assert schema_of(bytes) == {}
    assert Draft202012Validator(schema_of(bytes | None)).is_valid("x")


# --- What the schema refuses, load_recipe refuses too ---------------------------------------


def words() -> list[str]:
    tables = [note for h in setting_types(Recipe).values() for note in notes_of(h)]
    names = [name for table in tables if isinstance(table, Table) for name in table]
    return [*names, *AUGMENTS, *MODELS, *FAMILIES, "", "balanced", "auto", "none", "x"]


def value(draw: random.Random, depth: int = 0) -> Any:
    """Some value of TOML, often one that occurs in recipes."""
    kinds = [
        lambda: draw.choice([0, 1, 2, -1, 3, 10, 65536, 10**6, 2**63 - 1]),
        lambda: draw.choice([0.0, 0.5, 1.0, -0.1, 1.5, 1e-9, 1e9, 0.25]),
        lambda: draw.choice([True, False]),
        lambda: draw.choice(words()),
        lambda: [value(draw, depth + 1) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(KEYS): value(draw, depth + 1) for _ in range(draw.randrange(3))},
        lambda: [draw.choice([*AUGMENTS]), {draw.choice(KEYS): value(draw, depth + 1)}],
        lambda: {"family": draw.choice([*FAMILIES]), draw.choice(KEYS): value(draw, depth + 1)},
    ]
    return draw.choice(kinds if depth < 2 else kinds[:4])()


KEYS = ["size", "p", "padding", "mode", "widths", "depths", "depth", "alpha", "x", "activation"]


def generated(draw: random.Random) -> dict[str, Any]:
    """A named recipe's settings, some of them changed to another of its kind, or to anything."""
    settings = {
        k: v for k, v in draw.choice([*RECIPES.values()]).to_dict().items() if v is not None
    }
    kept = {name: settings[name] for name in draw.sample([*settings], 5)}
    for name in draw.sample([*setting_types(Recipe)], draw.randrange(3)):
        other = draw.choice([*RECIPES.values()]).to_dict()[name]
        kept[name] = value(draw) if other is None or draw.random() < 0.7 else other
    return kept


def test_what_the_schema_refuses_no_recipe_holds(tmp_path):
    draw, seen = random.Random(0), Counter[tuple[bool, bool]]()
    for _ in range(600):
        settings = generated(draw)
        admitted = admits(settings)
        try:
            load(settings, tmp_path)
            loaded = True
        except UserError:
            loaded = False
        assert admitted or not loaded, settings
        seen[admitted, loaded] += 1
    assert min(seen[True, True], seen[False, False]) > 100
    assert seen[True, False] < 60  # rules between settings, such as widths without depths
