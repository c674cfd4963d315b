"""The named recipes: where they come from, what they cost, what they reached."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.models.cost import summarize
from leanres.models.zoo import MODELS, resolve
from leanres.training.recipe import Recipe
from leanres.training.recipes import NAMED_RECIPES, RECIPES, best_measured, cost
from leanres.training.step_counts import StepCounts

RESULTS = Path(__file__).parents[2] / "results"


def test_every_recipe_says_where_it_comes_from():
    assert list(NAMED_RECIPES) == list(RECIPES)
    assert all(entry.source for entry in NAMED_RECIPES.values())


@pytest.mark.parametrize("name", [name for name, entry in NAMED_RECIPES.items() if entry.measured])
def test_own_accuracy_is_the_mean_of_the_committed_runs(name):
    own = NAMED_RECIPES[name].measured
    runs = json.loads((RESULTS / own.results).read_text())["runs"]
    assert {run["recipe"]["model"] for run in runs} == {RECIPES[name].model}
    assert {run["recipe"]["epochs"] for run in runs} == {RECIPES[name].epochs}
    assert len({run["seed"] for run in runs}) == len(runs) == own.n
    mean = sum(100 * run["accuracy"] for run in runs) / len(runs)
    assert own.accuracy == pytest.approx(mean, abs=0.005)


def test_custom_resnet_text_runs_the_cycle_that_its_code_asked_pytorch_for():
    counts = StepCounts(RECIPES["custom-resnet-text"], 50_000)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, counts.total)
    for step in range(counts.total):
        lr = counts.recipe.lr * counts.lr_factor(step)
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < counts.total - 1:
            cycle.step()


def test_a_network_shows_the_best_of_its_recipes():
    assert best_measured("speednet") == NAMED_RECIPES["speed"].measured
    assert best_measured("wrn-16-4") is None
    assert {recipe.model for recipe in RECIPES.values()} <= set(MODELS)


def test_the_cost_counts_what_goes_through_the_network():
    macs = summarize(resolve("resnet20")).macs
    plain = replace(RECIPES["plain-sgd"], epochs=2, batch_size=100)
    assert cost(plain, 1000) == 6 * macs * 2000
    assert cost(replace(plain, augment_repeats=2), 1000) == 12 * macs * 2000
    assert cost(replace(plain, sam_rho=0.05), 1000) == 12 * macs * 2000
    half = replace(plain, progressive_resizing=((0.0, 0.5), (0.5, 1.0)))
    assert cost(half, 1000) == pytest.approx(6 * macs * 2000 * (0.25 + 1) / 2)
    assert cost(Recipe()) == pytest.approx(3.2e14, rel=0.01)  # speed
