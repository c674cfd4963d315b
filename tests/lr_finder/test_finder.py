"""The LR range test: it leaves no trace, finds a known answer, and reports when there is none."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from leanres.data.sources import load_data
from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError
from leanres.lr_finder.analysis import RULES, LRSweep, analyse
from leanres.lr_finder.finder import READ_EVERY, find_lr, freeze_phase, range_test
from leanres.models.preprocess import Normalize
from leanres.models.speednet import SpeedNetConfig
from leanres.training.device import CPU, Device
from leanres.training.loop import TrainState, start, steps
from leanres.training.optim import OPTIMIZERS, set_lr_
from leanres.training.recipe import Recipe, learning_rates
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts

TINY = Recipe(
    model=SpeedNetConfig((8, 16)),
    epochs=2,
    batch_size=50,
    augment=(("crop", {"padding": 2}),),
    progressive_resizing=((0.0, 0.5), (0.5, 1.0)),
    seed=3,
)
QUICK = LRSweep(lr_min=1e-4, steps=30)


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_data("digits").train.subset(range(300))


@pytest.fixture
def device() -> Device:
    return CPU("cpu", "float32", compiled=False)


def trained(recipe: Recipe, split: Split, device: Device, count: int = 3):
    """A state after `count` steps, its setup, and the generator of the following steps."""
    setup = Setup(recipe, split, Normalize(*channel_stats(split)), device)
    state = start(setup)
    run = steps(state, setup)
    for _ in range(count):
        state.losses.append(next(run).loss)
    return state, setup, run


def fingerprint(state: TrainState) -> str:
    """sha256 over everything that a range test could change."""
    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}{value.stride()}".encode())
            value = value.detach().contiguous().numpy().tobytes()
        elif isinstance(value, dict):
            for key, inner in value.items():
                add(key)
                add(inner)
            return
        elif isinstance(value, list | tuple):
            for inner in value:
                add(inner)
            return
        digest.update(value if isinstance(value, bytes) else repr(value).encode())

    for model in (state.model, state.ema):
        if model is not None:
            add(model.state_dict())
            add([(m.training, len(m._forward_hooks)) for m in model.modules()])
            add([(id(p), p.requires_grad, p.grad) for p in model.parameters()])
    for optimizer in state.optimizers:
        add(optimizer.state_dict())
        add([id(p) for group in optimizer.param_groups for p in group["params"]])
    add([state.step, state.history, state.losses, state.correct])
    add([torch.random.get_rng_state(), random.getstate()])
    add([torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")])
    return digest.hexdigest()


def test_the_fingerprint_depends_on_each_thing_that_could_change(digits, device):
    state, _, _ = trained(replace(TINY, ema=0.9), digits, device)
    seen = [fingerprint(state)]
    changes = (
        lambda: state.model.stem.bias.data.add_(1e-3),
        lambda: state.model.stages[0].norm1.running_mean.add_(1e-3),
        lambda: state.model.eval(),
        lambda: state.optimizers[0].param_groups[0].update(lr=1.0),
        lambda: state.model.head.requires_grad_(False),
        lambda: setattr(state.model.head.weight, "grad", torch.zeros(10, 16)),
        lambda: state.ema.head.weight.data.add_(1e-3),
        lambda: torch.rand(1),
        lambda: setattr(state, "step", 9),
    )
    for change in changes:
        change()
        seen.append(fingerprint(state))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_leaves_no_trace_whatever_the_optimizer(digits, device, optimizer):
    recipe = replace(TINY, optimizer=optimizer)
    state, setup, _ = trained(recipe, digits, device)
    before = fingerprint(state)
    with suppress(UserError):  # there may be no answer; only the state matters here
        range_test(state, setup, QUICK)
    assert fingerprint(state) == before


def test_an_untrained_state_stays_without_gradients_and_peak_lrs(digits, device):
    state, setup, _ = trained(TINY, digits, device, count=0)
    range_test(state, setup, QUICK)
    assert state.step == 0
    assert all(p.grad is None for p in state.model.parameters())
    assert all("peak_lr" not in g for o in state.optimizers for g in o.param_groups)
    assert all(not o.state for o in state.optimizers)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", id="under_autocast_to_bfloat16")]
)
def test_it_leaves_no_trace_with_an_average_dropout_and_gradients(digits, precision):
    device = CPU("cpu", precision, compiled=False)
    recipe = replace(TINY, ema=0.9)
    state, setup, _ = trained(recipe, digits, device)
    state.model.head = nn.Sequential(nn.Dropout(0.2), state.model.head)
    state.ema = copy.deepcopy(state.model)
    for p in state.model.stages.parameters():
        p.grad = torch.ones_like(p)
    state.model.eval()
    before = fingerprint(state)
    found = range_test(state, setup, QUICK)
    assert fingerprint(state) == before
    assert found.lr_min < found.lr_max


def test_a_network_that_uses_the_global_generator_leaves_it_unchanged_and_repeats(digits, device):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.01 * torch.randn_like(x)

    state, setup, _ = trained(TINY, digits, device)
    state.model.head = nn.Sequential(Noisy(), state.model.head)
    before = fingerprint(state)
    found = [range_test(state, setup, QUICK) for _ in range(2)]
    assert fingerprint(state) == before
    assert found[0] == found[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_it_leaves_no_trace_when_it_is_interrupted_or_diverges(digits, device, error):
    state, setup, _ = trained(replace(TINY, optimizer="sgd"), digits, device)

    class Bomb(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            if error and self.calls == 7:
                raise error
            return setup.normalize(images) * (math.inf if self.calls == 7 else 1)

    before = fingerprint(state)
    with pytest.raises(error or UserError):
        range_test(state, replace(setup, normalize=Bomb()), QUICK)
    assert fingerprint(state) == before


def test_training_continues_bit_for_bit_as_without_a_test(digits, device):
    def losses(with_test: bool) -> list[float]:
        state, setup, run = trained(TINY, digits, device, count=4)
        if with_test:
            range_test(state, setup, QUICK)
        return [float(result.loss) for result in run]

    assert losses(True) == losses(False)


def test_a_range_test_repeats_and_another_seed_gives_another_curve(digits, device):
    found = [
        find_lr(replace(TINY, seed=seed), digits, device, **asdict(QUICK)) for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert found[0].losses != found[2].losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_gets_a_range_within_the_tested_one(digits, device, optimizer):
    recipe = replace(TINY, optimizer=optimizer, augment=(), progressive_resizing=())
    sweep = LRSweep(lr_min=1e-4, lr_max=100, steps=50)
    found = find_lr(recipe, digits, device, **asdict(sweep))
    assert sweep.lr_min / 10 <= found.lr_min < found.lr_max < sweep.lr_max
    assert set(found.suggestions) == set(RULES)


def test_all_groups_rise_together_and_keep_their_ratio(digits, device, monkeypatch):
    seen: list[list[float]] = []

    def spy(optimizers, factor) -> None:
        set_lr_(optimizers, factor)
        seen.append([group["lr"] for o in optimizers for group in o.param_groups])

    state, setup, _ = trained(TINY, digits, device)
    monkeypatch.setattr("leanres.training.loop.set_lr_", spy)
    found = range_test(state, setup, QUICK)
    lrs = np.array(seen)[: len(found.lrs)]
    np.testing.assert_allclose(lrs[:, 0], found.lrs, rtol=1e-12)
    np.testing.assert_allclose(lrs[:, 1] / lrs[:, 0], TINY.bias_lr / TINY.lr, rtol=1e-12)
    # The classifier has 16 inputs.
    np.testing.assert_allclose(lrs[:, 2] / lrs[:, 0], TINY.head_lr / 16 / TINY.lr, rtol=1e-12)
    tuned = replace(TINY, **found.settings(TINY))
    assert tuned.lr == found.lr_max
    assert tuned.bias_lr / tuned.lr == pytest.approx(TINY.bias_lr / TINY.lr)
    assert tuned.head_lr / tuned.lr == pytest.approx(TINY.head_lr / TINY.lr)
    assert found.settings(replace(TINY, optimizer="sgd")) == {"lr": found.lr_max}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_settings_set_every_groups_lr(digits, device, optimizer):
    found = analyse([2 - i / 100 for i in range(LRSweep().steps)], LRSweep())
    recipe = replace(TINY, optimizer=optimizer)
    before, after = (
        [
            g["lr"]
            for o in OPTIMIZERS[optimizer](trained(r, digits, device, 0)[0].model, r)
            for g in o.param_groups
        ]
        for r in (recipe, replace(recipe, **found.settings(recipe)))
    )
    assert after == pytest.approx([lr * found.lr_max / TINY.lr for lr in before])


def test_the_learning_rates_of_an_optimizer_are_marked_in_the_recipe():
    assert learning_rates("muon") == ["lr", "bias_lr", "head_lr"]
    assert all(learning_rates(name) == ["lr"] for name in OPTIMIZERS if name != "muon")


def test_the_loss_is_read_every_ten_steps_only(digits, device, monkeypatch):
    reads = []
    original = torch.Tensor.tolist
    state, setup, _ = trained(TINY, digits, device)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (reads.append(t.shape), original(t))[1])
    range_test(state, setup, replace(QUICK, steps=25, lr_max=1.0))
    assert [tuple(r) for r in reads if len(r) == 1] == [(READ_EVERY,), (READ_EVERY,), (5,)]


def test_the_phase_of_the_recipe_is_fixed_however_long_the_test_is():
    counts = StepCounts(TINY, 300)
    early, late = freeze_phase(TINY, 300, 0, 500), freeze_phase(TINY, 300, 11, 500)
    for step, fixed in ((0, early), (11, late)):
        long = StepCounts(fixed, 300)
        assert long.total >= step + 500
        assert {long.scale(s) for s in range(long.total)} == {counts.scale(step)}
        assert (long.freeze_stem <= step) == (counts.freeze_stem <= step)
    assert (counts.scale(0), counts.scale(11)) == (0.5, 1.0)


def test_a_cycle_longer_than_the_test_does_not_matter(digits, device):
    cycle = ("one-cycle", {"peak_epoch": 5.0})
    recipe = replace(TINY, epochs=24, optimizer="sgd", schedule=cycle, progressive_resizing=())
    plain = replace(recipe, schedule=("constant", {}))
    found, same = (find_lr(r, digits, device, **asdict(QUICK)) for r in (recipe, plain))
    assert found == same


def test_a_dataset_is_tested_on_what_the_recipe_would_train_on(digits, device):
    whole = Dataset("digits", digits, None, None)
    recipe = replace(TINY, val=100)
    held_out = find_lr(recipe, whole, device, **asdict(QUICK))
    assert held_out.losses != find_lr(recipe, digits, device, **asdict(QUICK)).losses
    with pytest.raises(UserError, match="Padding size"):
        find_lr(
            replace(TINY, augment=(("crop", {"padding": 99, "mode": "reflect"}),)), whole, device
        )


# A problem with a known answer.


@pytest.fixture
def bowl():
    """A loss that is almost quadratic in the weights W near its minimum.

    With targets close to (0.5, 0.5) the curvature of the cross-entropy is at most 1/2 times the
    largest eigenvalue of the inputs' second moment, so that full-batch gradient descent diverges
    for an lr above 2 / curvature.
    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 4, 4), generator=rng).to(torch.uint8)
    split = Split(images, torch.randint(0, 2, (64,), generator=rng), ("a", "b"))
    normalize = Normalize(*channel_stats(split))
    x = normalize(images).flatten(1).double()
    sharpest = float(torch.linalg.eigvalsh(x.T @ x / 64)[-1]) / 2
    recipe = Recipe(
        optimizer="sgd",
        momentum=0.0,
        batch_size=64,
        epochs=40,
        schedule="constant",
        label_smoothing=0.99,
        augment=(),
        progressive_resizing=(),
    )

    def fresh() -> TrainState:
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
        nn.init.normal_(model[1].weight, std=0.5, generator=torch.Generator().manual_seed(1))
        return TrainState(model, OPTIMIZERS["sgd"](model, recipe), None)

    return fresh, Setup(recipe, split, normalize, CPU("cpu", "float32", False)), 2 / sharpest


def final_loss(bowl, lr: float) -> float:
    fresh, setup, _ = bowl
    run = steps(fresh(), setup, lambda step: lr / setup.recipe.lr)
    return [float(result.loss) for result in run][-1]


def test_on_a_quadratic_the_range_ends_below_divergence_and_trains_well(bowl):
    fresh, setup, threshold = bowl
    assert final_loss(bowl, 0.9 * threshold) < 0.7  # ln 2 is the minimum
    assert final_loss(bowl, 4 * threshold) > 0.75
    found = range_test(fresh(), setup, LRSweep(lr_min=1e-4, lr_max=100))
    assert "exceeded 4 times its best" in found.stopped
    assert found.lr_min < found.lr_max < threshold
    assert max(found.suggestions.values()) < threshold
    best = final_loss(bowl, found.lr_max)
    assert best < final_loss(bowl, found.lr_max / 100)
    assert best < 0.75


def test_an_lr_of_zero_cannot_be_scaled(digits, device):
    state, setup, _ = trained(TINY, digits, device, count=0)
    state.optimizers[0].param_groups[0]["lr"] = 0.0
    with pytest.raises(UserError, match="lr = 0"):
        range_test(state, setup, QUICK)


def test_a_custom_network_and_optimizer_can_be_tested(digits, device):
    """The state was not made from the recipe, and its optimizer is not in OPTIMIZERS."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))
    state = TrainState(model, [torch.optim.RMSprop(model.parameters(), lr=1e-3)], None)
    twin = copy.deepcopy(model.state_dict())
    recipe = replace(TINY, progressive_resizing=())
    setup = Setup(recipe, digits, Normalize(*channel_stats(digits)), device)
    found = range_test(state, setup)
    assert 1e-6 <= found.lr_min < found.lr_max < 10
    assert all(torch.equal(model.state_dict()[name], value) for name, value in twin.items())


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"lr_min": 0}, "lr_min = 0: give a number from 1e-12 to 1000"),
        (
            {"lr_min": 1, "lr_max": 1},
            r"lr_min = 1, lr_max = 1: give lr_min \(--lr-min\) below",
        ),
        ({"lr_max": math.inf}, "lr_max = inf: give a number from 1e-12 to 1000"),
        ({"lr_min": math.nan}, "lr_min = nan: give a number from 1e-12 to 1000"),
        ({"steps": 5}, "steps = 5: give a whole number from 16 to 100000"),
        ({"mode": "exponentail"}, "did you mean 'exponential'"),
        ({"smoothing": 0.9}, "smoothing = 0.9"),
        ({"diverge_at": 1}, "diverge_at = 1"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(settings, part):
    with pytest.raises(UserError, match=part):
        find_lr(TINY, None, **settings)
