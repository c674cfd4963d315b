from __future__ import annotations

import json
from dataclasses import replace

import pytest

from leanres.errors import UserError
from leanres.training.recipe import Recipe, from_dict, parse_setting
from leanres.training.recipes import RECIPES, load_recipe
from leanres.training.step_counts import StepCounts


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_of_every_recipe_is_reached(name):
    recipe = RECIPES[name]
    counts = StepCounts(recipe, 50_000)
    scales = {counts.scale(step) for step in range(counts.total)}
    assert scales == ({scale for _, scale in recipe.progressive_resizing} or {1.0})
    if recipe.freeze_stem_at < 1:
        assert 0 < counts.freeze_stem < counts.total
    if recipe.warmup:
        assert 0 < counts.warmup < counts.total


def test_the_last_phase_trains_at_full_size():
    counts = StepCounts(RECIPES["speed"], 50_000)
    assert counts.scale(counts.total - 1) == 1.0


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("lr=0.2", ("lr", 0.2)),
        ("lr=.2", ("lr", 0.2)),
        ("epochs=3", ("epochs", 3)),
        ("model=resnet20", ("model", "resnet20")),
        ('model="resnet20"', ("model", "resnet20")),
        ("nesterov=false", ("nesterov", False)),
        ('augment=[["crop", {padding = 4}]]', ("augment", [["crop", {"padding": 4}]])),
    ],
)
def test_settings_are_toml_or_bare_words(text, setting):
    assert parse_setting(text) == setting


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1}, "learning|lr"),
        ({"label_smothing": 0.1}, "did you mean 'label_smoothing'"),
        ({"model": "resnet21"}, "did you mean 'resnet"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": ["step", {"gama": 0.1}]}, "did you mean 'gamma'"),
        ({"schedule": ["linear", {"x": 1}]}, "schedule linear has no settings"),
        ({"schedule": ["step", {"every_epochs": 0}]}, "every_epochs = 0: give a whole number"),
        ({"schedule": ["one-cycle", {"shape": "round"}]}, "'linear' or 'cosine'"),
        ({"schedule": ["cosine", {"per_epoch": 1}]}, "true or false"),
        ({"augment": [["crop", {"paddin": 4}]]}, "did you mean 'padding'"),
        ({"augment": [["flip", {"p": 2}]]}, "p = 2: give a number from 0 to 1"),
        ({"schedule": ["step", {"gamma": "a"}]}, "gamma = 'a': give a number"),
        ({"schedule": ["one-cycle", {"peak_epoch": 30}]}, "not within the 9 epochs"),
        ({"schedule": "one-cycle", "warmup": 0.1}, "set warmup = 0, not 0.1"),
        ({"schedule": 3}, "schedule 3: give a name"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"mean": [0.5, 0.5]}, "per channel"),
        ({"mean": [0.5, 0.5, 50]}, "from 0 to 1"),
        ({"augment": ["crp"]}, "did you mean 'crop'"),
        ({"augment": 3}, "give a list"),
        ({"augment": [3]}, "augment step 3"),
        ({"epochs": 0}, "epochs = 0: give a whole number from 1 to 100000"),
        ({"epochs": 2.5}, "whole number"),
        ({"lr": "high"}, "give a number"),
        ({"lr": -1}, "lr = -1"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"nesterov": 1}, "true or false"),
        ({"betas": [0.9]}, "two numbers"),
        ({"betas": [True, 0.9]}, "two numbers"),
        ({"betas": [1.5, 0.9]}, "from 0 to 0.999999"),
        ({"model": 3}, "give a name"),
        ({"model": {"family": "resnet", "wdths": [8]}}, "did you mean 'widths'"),
        ({"progressive_resizing": [[0.5, 1.0], [0.2, 0.5]]}, "shares rising"),
        ({"progressive_resizing": [[0.0, 0.01]]}, "scales"),
        ({"precision": "fp8"}, "bfloat16"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"lr": "x"}, {"epochs": 2.5}, {"augment": (3,)}, {"seed": "one"}]
)
def test_a_recipe_made_in_python_is_checked_as_one_from_a_file(settings):
    with pytest.raises(UserError):
        Recipe(**settings)


def test_augmentations_may_be_names_alone():
    assert Recipe(augment=("flip",)).augment == (("flip", {}),)


def test_a_toml_file_changes_the_recipe_that_it_names(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "plain-sgd"\nlr = 0.05\naugment = ["flip"]\n')
    expected = replace(RECIPES["plain-sgd"], lr=0.05, augment=(("flip", {}),))
    assert load_recipe(str(file)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr = ", "not TOML"),
        ("x = 1", "no setting"),
        ("base = 3", "name of a recipe"),
        ('base = "sped"', "did you mean 'speed'"),
    ],
)
def test_a_bad_toml_file_is_named(tmp_path, content, message):
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_recipe(str(file))


def test_a_missing_toml_file_and_an_unknown_recipe_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.toml cannot be read: No such file"):
        load_recipe(str(tmp_path / "gone.toml"))
    with pytest.raises(UserError, match="did you mean 'speed'"):
        load_recipe("sped")


def test_a_split_smaller_than_a_batch_is_one_batch():
    counts = StepCounts(Recipe(epochs=3, batch_size=500), 120)
    assert (counts.batch_size, counts.steps_per_epoch, counts.total) == (120, 1, 3)
