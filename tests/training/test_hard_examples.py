"""A network that selects the hard examples to train on: against a slow loop, and without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from leanres.data.split import channel_stats
from leanres.errors import UserError
from leanres.models.preprocess import Normalize
from leanres.models.speednet import SpeedNetConfig
from leanres.runs import checkpoint
from leanres.runs.fit import fit
from leanres.training.batch import Batch
from leanres.training.hard_examples import select_hardest_
from leanres.training.loop import start, steps
from leanres.training.recipe import Recipe, from_dict
from leanres.training.setup import Setup

SELECTOR = SpeedNetConfig((4, 8))


def begun(recipe: Recipe, train, device):
    setup = Setup(recipe, train, Normalize(*channel_stats(train)), device)
    return start(setup), setup


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_hardest_are_those_of_a_loop_and_the_selector_learns(digits, device, accumulate):
    recipe = Recipe(
        model=SELECTOR, selector=SELECTOR, batch_size=40, select_fraction=0.3, accumulate=accumulate
    )
    state, setup = begun(recipe, digits.train, device)
    selector = state.selector.eval()  # each image by itself
    inputs, targets = setup.normalize(digits.train.images[:40]), digits.train.labels[:40]
    with device.autocast():
        losses = [
            F.cross_entropy(selector(x[None]), y[None], label_smoothing=0.2)
            for x, y in zip(inputs, targets, strict=True)
        ]
    kept = select_hardest_(selector, Batch(inputs, targets), setup)
    assert kept.tolist() == sorted(set(kept.tolist()))
    each = torch.stack(losses)
    # By value, as images of equal loss may stand for each other.
    torch.testing.assert_close(each[kept].sort().values, each.sort().values[-12:])
    weights = [p for p in selector.parameters() if p.requires_grad]
    whole = torch.autograd.grad(torch.stack(losses).mean(), weights)
    for p, gradient in zip(weights, whole, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_selector_that_selects_everything_changes_nothing(digits, device, small):
    def losses(recipe: Recipe) -> list[float]:
        state, setup = begun(recipe, digits.train, device)
        return [float(s.loss) for s in steps(state, setup)]

    assert losses(replace(small, selector=SELECTOR, select_fraction=1.0)) == losses(small)


def test_the_network_sees_the_share_that_is_kept(digits, device, small, monkeypatch):
    recipe = replace(small, selector=SELECTOR, select_fraction=0.25)
    state, setup = begun(recipe, digits.train, device)
    seen = []
    state.model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    next(steps(state, setup))
    assert sum(seen) == 50 == setup.counts.selected_per_step


def test_a_run_with_a_selector_learns_and_resumes_bit_for_bit(digits, device, small, tmp_path):
    recipe = replace(
        small, selector=SELECTOR, mix=(), progressive_resizing=(), augment=(), epochs=2
    )
    state, setup = begun(recipe, digits.train, device)
    run = steps(state, setup)
    for _ in range(7):
        next(run)
    checkpoint.save(tmp_path, state)
    through = [float(result.loss) for result in run]
    other, _ = begun(recipe, digits.train, device)
    assert not checkpoint.restore_(tmp_path, other)
    again = [float(result.loss) for result in steps(other, setup)]
    assert again == through
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.selector.parameters(), other.selector.parameters(), strict=True)
    )
    result = fit(tmp_path / "run", replace(recipe, epochs=6), digits, device)
    assert result["accuracy"] > 0.5  # ten classes


def test_a_recipe_with_a_selector_survives_json():
    recipe = Recipe(selector=SELECTOR, select_fraction=0.5)
    assert from_dict(recipe.to_dict()) == recipe
    for settings, said in (
        ({"selector": "resnet19"}, "did you mean"),
        ({"selector": 3}, "selector = 3: give a name"),
        ({"selector": "resnet20", "select_fraction": 0}, "select_fraction = 0"),
    ):
        with pytest.raises(UserError, match=said):
            from_dict(settings)
