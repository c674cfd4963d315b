"""Settings by which a recipe follows its source: partial batches, normalising first, momentum."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from leanres.data.split import channel_stats
from leanres.errors import UserError
from leanres.models.preprocess import Normalize
from leanres.models.speednet import SpeedNetConfig
from leanres.training.batch import batches
from leanres.training.loop import start, steps, train_epochs
from leanres.training.optim import OPTIMIZERS
from leanres.training.preflight import preflight_check
from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import RECIPES
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts

NETWORK = SpeedNetConfig((8, 16))
CYCLE = {"peak_epoch": 1.5, "cycle_momentum": (0.95, 0.85), "shape": "cosine"}


def setup_of(recipe, split, device):
    return Setup(recipe, split, Normalize(*channel_stats(split)), device)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [100, 119, 7, 5000])
def test_batches_are_as_many_and_as_large_as_a_data_loaders(size, drop_last, digits, small):
    split = digits.train
    recipe = replace(small, mix=(), batch_size=size, drop_last=drop_last)
    counts = StepCounts(recipe, len(split))
    loader = DataLoader(range(len(split)), min(size, len(split)), drop_last=drop_last)
    expected = [len(batch) for batch in loader] * recipe.epochs
    assert [len(labels) for _, labels in batches(split, counts)] == expected
    assert counts.total == len(expected)
    assert counts.selected_per_epoch * recipe.epochs == sum(expected)


@pytest.mark.parametrize("selector", ["", "speednet"])
def test_with_partial_batches_every_image_is_trained_on_and_counted(selector, digits, device):
    recipe = Recipe(
        NETWORK, 1, 100, accumulate=3, drop_last=False, selector=selector, lr=0.01, val=0
    )
    setup = setup_of(recipe, digits.train.subset(range(287)), device)
    state = start(setup)
    preflight_check(setup, state)
    (row,) = train_epochs(state, setup)
    assert row["step"] == 3
    assert setup.counts.images_of_steps == [100, 87]
    seen = [100, 100, 87] if not selector else [50, 50, 44]
    assert setup.counts.selected_per_epoch == sum(seen)
    assert 0 <= row["train_accuracy"] <= 1


def test_a_partial_batch_of_one_image_is_refused_where_batch_norm_would(digits, device):
    split = digits.train.subset(range(401))
    split = replace(split, images=split.images[:, :, ::32, ::32].contiguous())  # 1 px
    recipe = replace(
        RECIPES["plain-sgd"], batch_size=100, drop_last=False, augment=(), val=0, epochs=2
    )
    setup = setup_of(recipe, split, device)
    with pytest.raises(UserError, match="part of one image"):
        preflight_check(setup, start(setup))


def test_normalised_first_padding_and_holes_have_the_mean_colour(digits, small):
    steps_ = (("crop", {"padding": 4}), ("cutout", {"size": 8}))
    recipe = replace(small, mix=(), augment=steps_, normalize_first=True)
    counts, normalize = StepCounts(recipe, len(digits.train)), Normalize((0.4003,) * 3, (0.2,) * 3)
    early, _ = next(batches(digits.train, counts, 0, normalize))
    late, _ = next(batches(digits.train, counts))
    added = early == 0
    assert added.any()
    assert torch.equal(normalize(late)[~added], early[~added])
    assert (late[added] == 0).all()  # black, where images are normalised later


def test_normalising_first_or_last_is_the_same_where_nothing_is_added(digits, device):
    recipe = Recipe(NETWORK, 1, 700, augment=(("flip", {}),), lr=0.01)
    both = [replace(recipe, normalize_first=first) for first in (True, False)]
    losses = []
    for each in both:
        setup = setup_of(each, digits.train, device)
        preflight_check(setup, start(setup))
        losses.append([float(result.loss) for result in steps(start(setup), setup)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": ["auto_augment"]}, "auto_augment needs pixel values"),
        ({"augment": ["flip", "random_erasing"]}, "random_erasing needs pixel values"),
        ({"teacher": "weights.safetensors"}, "a teacher needs images that are not normalised"),
    ],
)
def test_what_needs_pixel_values_cannot_come_after_normalising(settings, message):
    with pytest.raises(UserError, match=message):
        from_dict({"normalize_first": True} | settings)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_momentum_cycles_as_in_pytorchs_one_cycle(optimizer, shape, digits, device):
    recipe = replace(
        RECIPES["plain-sgd"],
        model=NETWORK,
        epochs=5,
        batch_size=50,
        optimizer=optimizer,
        lr=0.01,
        warmup=0.0,
        augment=(),
        schedule=("one-cycle", {**CYCLE, "shape": shape}),
        val=0,
    )
    setup = setup_of(recipe, digits.train.subset(range(200)), device)
    state = start(setup)
    (oracle,) = OPTIMIZERS[optimizer](copy.deepcopy(state.model), recipe)
    anneal = "cos" if shape == "cosine" else "linear"
    # (1.5 epochs of 4 steps) / 20: the share of the rise
    cycle = OneCycleLR(oracle, 0.01, 20, pct_start=0.3, anneal_strategy=anneal)
    key = (lambda g: g["betas"][0]) if optimizer == "adam" else (lambda g: g["momentum"])
    for taken, _ in enumerate(steps(state, setup), 1):
        assert key(state.optimizers[0].param_groups[0]) == pytest.approx(
            key(oracle.param_groups[0]), abs=1e-12
        )
        oracle.step()
        if taken < 20:
            cycle.step()
    assert taken == 20


def test_a_cycle_of_one_momentum_is_refused():
    with pytest.raises(UserError, match=r"cycle_momentum = \[0.9\]: give the momentum at"):
        from_dict({"schedule": ["one-cycle", {"cycle_momentum": [0.9]}]})


@pytest.mark.parametrize(
    ("optimizer", "betas"),
    [("adam", (0.9, 0.999)), ("adamw", (0.9, 0.999)), ("muon", (0.85, 0.95))],
)
def test_betas_that_are_not_given_are_the_optimizers_own(optimizer, betas):
    """Whatever recipe they are changed from."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2))
    for name in ("speed", "plain-sgd", "resnet26-97"):
        recipe = replace(RECIPES[name], optimizer=optimizer)
        last = OPTIMIZERS[optimizer](model, recipe)[-1]
        assert {group["betas"] for group in last.param_groups} == {betas}
        given = OPTIMIZERS[optimizer](model, replace(recipe, betas=(0.8, 0.9)))[-1]
        assert {group["betas"] for group in given.param_groups} == {(0.8, 0.9)}
