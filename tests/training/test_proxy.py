"""A proxy that picks what the network trains on: against a slow loop, and without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from leanres.data.split import channel_stats
from leanres.errors import UserError
from leanres.models.speednet import SpeedNetConfig
from leanres.training import checkpoint
from leanres.training import run as runs
from leanres.training.batch import Batch
from leanres.training.engine import Normalize
from leanres.training.loop import start, steps
from leanres.training.proxy import hardest
from leanres.training.recipe import Plan, Recipe, from_dict

PROXY = SpeedNetConfig((4, 8))


def begun(recipe: Recipe, train, engine):
    normalize = Normalize(*channel_stats(train))
    return start(recipe, train, normalize, engine), normalize


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_hardest_are_those_of_a_loop_and_the_proxy_learns_from_all(digits, engine, accumulate):
    recipe = Recipe(model=PROXY, proxy=PROXY, batch_size=40, keep=0.3, accumulate=accumulate)
    state, normalize = begun(recipe, digits.train, engine)
    proxy = state.proxy.eval()  # each image by itself
    inputs, targets = normalize(digits.train.images[:40]), digits.train.labels[:40]
    with engine.autocast():
        losses = [
            F.cross_entropy(proxy(x[None]), y[None], label_smoothing=0.2)
            for x, y in zip(inputs, targets, strict=True)
        ]
    kept = hardest(proxy, Batch(inputs, targets), Plan(recipe, 1000), engine)
    assert kept.tolist() == sorted(set(kept.tolist()))
    each = torch.stack(losses)
    # By value, as images of equal loss may stand for each other.
    torch.testing.assert_close(each[kept].sort().values, each.sort().values[-12:])
    weights = [p for p in proxy.parameters() if p.requires_grad]
    whole = torch.autograd.grad(torch.stack(losses).mean(), weights)
    for p, gradient in zip(weights, whole, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_proxy_that_picks_everything_changes_nothing(digits, engine, small):
    def losses(recipe: Recipe) -> list[float]:
        state, normalize = begun(recipe, digits.train, engine)
        return [float(s.loss) for s in steps(state, digits.train, recipe, normalize, engine)]

    assert losses(replace(small, proxy=PROXY, keep=1.0)) == losses(small)


def test_the_network_sees_the_share_that_is_kept(digits, engine, small, monkeypatch):
    recipe = replace(small, proxy=PROXY, keep=0.25)
    state, normalize = begun(recipe, digits.train, engine)
    seen = []
    state.model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    next(steps(state, digits.train, recipe, normalize, engine))
    assert sum(seen) == 50 == Plan(recipe, len(digits.train)).kept_per_step


def test_a_run_with_a_proxy_learns_and_goes_on_bit_for_bit(digits, engine, small, tmp_path):
    recipe = replace(small, proxy=PROXY, mix=(), resolution=(), augment=(), epochs=2)
    state, normalize = begun(recipe, digits.train, engine)
    run = steps(state, digits.train, recipe, normalize, engine)
    for _ in range(7):
        next(run)
    checkpoint.save(tmp_path, state)
    through = [float(result.loss) for result in run]
    other, _ = begun(recipe, digits.train, engine)
    assert not checkpoint.restore_(tmp_path, other)
    again = [float(result.loss) for result in steps(other, digits.train, recipe, normalize, engine)]
    assert again == through
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.proxy.parameters(), other.proxy.parameters(), strict=True)
    )
    result = runs.fit(tmp_path / "run", replace(recipe, epochs=6), digits, engine)
    assert result["accuracy"] > 0.5  # ten classes


def test_a_recipe_with_a_proxy_survives_json_and_refuses_what_is_none():
    recipe = Recipe(proxy=PROXY, keep=0.5)
    assert from_dict(recipe.to_dict()) == recipe
    for settings, said in (
        ({"proxy": "resnet19"}, "did you mean"),
        ({"proxy": 3}, "proxy = 3: give a name"),
        ({"proxy": "resnet20", "keep": 0}, "keep = 0"),
    ):
        with pytest.raises(UserError, match=said):
            from_dict(settings)
