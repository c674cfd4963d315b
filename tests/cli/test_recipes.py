"""`leanres recipes`."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from leanres.training.recipe import Recipe
from leanres.training.recipes import RECIPES, load_recipe


@pytest.mark.usefixtures("wide")
def test_recipes_are_listed_and_parse(leanres):
    rows = [json.loads(line) for line in leanres("recipes", "--json").out.splitlines()]
    assert rows[0]["name"] == "speed"
    assert rows[0]["measured"]["n"] == 10
    assert rows[0]["flop"] == pytest.approx(3.2e14, rel=0.01)
    lines = leanres("recipes").out.splitlines()
    assert " ".join(lines[0].split()) == (
        "recipe network epochs batch optimizer PFLOP reported % measured % source"
    )
    row = next(line for line in lines if "plain-sgd" in line)
    shown = "plain-sgd resnet20 30 128 sgd 0.1, cosine 0.364 91.25 He et al. 2015"
    assert " ".join(row.split()).startswith(shown)


@pytest.mark.parametrize("name", ["speed", "resnet26-97", "custom-resnet-text"])
def test_a_recipe_is_printed_as_a_file_that_gives_the_same_recipe(leanres, tmp_path, name):
    (tmp_path / "mine.toml").write_text(leanres("recipes", name).out)
    assert load_recipe(str(tmp_path / "mine.toml")) == RECIPES[name]


def test_training_with_a_printed_recipe_is_training_with_the_recipe(leanres, tmp_path, tiny):
    (tmp_path / "mine.toml").write_text(leanres("recipes", "digits").out)
    weights = []
    for recipe in (tmp_path / "mine.toml", "digits"):
        out = tmp_path / f"from-{len(weights)}"
        words = ["--data", "digits", "--epochs", 1, "--tta", "none", "--out", out, *tiny]
        assert leanres("train", recipe, *words).code == 0
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_printed_recipe_explains_every_setting_and_names_the_choices(leanres):
    lines = leanres("recipes", "speed").out.splitlines()
    for field in fields(Recipe):
        at = next(i for i, line in enumerate(lines) if f"{field.name} = " in line[:30])
        assert lines[at - 1].startswith("# "), field.name
    assert any("there are: adadelta, adam, adamw, muon, sgd" in line for line in lines)
    assert max(len(line) for line in lines if line.startswith("#")) <= 100


def test_an_unknown_recipe_to_print_is_answered_with_the_nearest(leanres, mistake):
    mistake(leanres("recipes", "sped"), "did you mean 'speed'")


def test_the_schema_is_printed_and_a_printed_recipe_names_its_file(leanres):
    printed = json.loads(leanres("recipes", "--schema").out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(printed["properties"]) == {"base", *(field.name for field in fields(Recipe))}
    first, second = leanres("recipes", "digits").out.splitlines()[:2]
    assert first == "#:schema ./recipe.schema.json"
    assert "leanres recipes --schema > recipe.schema.json" in second
