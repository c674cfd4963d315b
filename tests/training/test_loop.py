from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from torch import nn

from leanres.data.split import Split, channel_stats
from leanres.models.preprocess import Normalize
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.training.batch import batches
from leanres.training.device import CPU, Device
from leanres.training.loop import (
    NonFiniteLossError,
    StepResult,
    TrainState,
    restart_,
    start,
    steps,
    train_epochs,
)
from leanres.training.optim import OPTIMIZERS
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts


def fresh(recipe: Recipe, split: Split, device: Device) -> tuple[TrainState, Setup]:
    setup = Setup(recipe, split, Normalize(*channel_stats(split)), device)
    return start(setup), setup


def bare_losses(*arguments) -> list[float]:
    """benchmarks/bare_loop.py: the speed recipe with nothing of the framework but its kernels."""
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "bare_loop.py"
    spec = importlib.util.spec_from_file_location("bare_loop", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [loss.item() for loss in module.losses(*arguments)]


def test_the_loop_gives_the_losses_of_a_bare_loop_to_the_last_bit(digits, device):
    network = SpeedNetConfig((8, 16), activation="gelu")
    recipe = Recipe(model=network, epochs=5, batch_size=350, seed=3)
    state, setup = fresh(recipe, digits.train, device)
    losses = [float(r.loss) for r in steps(state, setup)]
    assert len(losses) == 20
    assert losses == bare_losses(digits.train, (8, 16), 5, 350, 3, False)


def test_a_run_learns_and_its_rows_add_up(digits, device, small):
    plain = {"augment": (), "mix": (), "progressive_resizing": (), "ema": 0.0}
    recipe = replace(small, epochs=4, batch_size=100, **plain)
    state, setup = fresh(recipe, digits.train, device)
    rows = list(train_epochs(state, setup, digits.test))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [14, 28, 42, 56]
    assert rows[-1]["val_accuracy"] > 0.8
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(0 <= row["train_accuracy"] <= 1 for row in rows)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(digits, device, small):
    def weights(seed: int) -> torch.Tensor:
        recipe = replace(small, seed=seed)
        state, setup = fresh(recipe, digits.train, device)
        list(steps(state, setup))
        return torch.cat([p.detach().flatten() for p in state.model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_starting_draws_nothing_from_the_global_generator(digits, device, small):
    before = torch.random.get_rng_state()
    fresh(small, digits.train, device)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_caller_may_drive_the_lr_of_every_group_by_the_step(digits, device, small):
    state, setup = fresh(small, digits.train, device)
    run = steps(state, setup, lambda step: 0.1 * (step + 1))
    for step, _ in zip(range(3), run, strict=False):
        seen = [group["lr"] for o in state.optimizers for group in o.param_groups]
        peaks = [small.lr, small.bias_lr, small.head_lr / 16]  # of 16 inputs
        assert seen == pytest.approx([0.1 * (step + 1) * peak for peak in peaks])


def test_each_epoch_visits_every_image_at_most_once_in_a_new_order(digits, device, small):
    recipe = replace(small, augment=(), mix=(), progressive_resizing=(), epochs=2, batch_size=300)
    state, setup = fresh(recipe, digits.train, device)
    seen: list[torch.Tensor] = []

    class Recorder(nn.Module):
        def forward(self, images):
            seen.append(images.detach())
            return setup.normalize(images)

    list(steps(state, replace(setup, normalize=Recorder())))
    epochs = [torch.cat(seen[i : i + 4]).flatten(1) for i in (0, 4)]
    for epoch in epochs:
        assert len(epoch.unique(dim=0)) > 1150  # of 1,200; the digits hold a few equal images
    assert not torch.equal(epochs[0], epochs[1])


def test_the_stem_stops_training_where_the_recipe_says_so(digits, device, small):
    recipe = replace(small, freeze_stem_at=0.5)
    state, setup = fresh(recipe, digits.train, device)
    run = steps(state, setup)
    biases = [state.model.stem.bias.detach().clone() for _ in run]
    half = StepCounts(recipe, len(digits.train)).freeze_stem
    assert 0 < half < len(biases)
    assert not torch.equal(biases[0], biases[half - 1])
    assert all(torch.equal(b, biases[half - 1]) for b in biases[half:])


def test_the_average_follows_the_weights_with_its_decay(digits, device, small):
    recipe = replace(small, ema=0.4)
    state, setup = fresh(recipe, digits.train, device)
    decays = chain([0, 1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14], repeat(0.4))  # the first reach less
    expected = torch.zeros_like(state.model.head.weight)
    for decay, _ in zip(decays, steps(state, setup), strict=False):
        expected = decay * expected + (1 - decay) * state.model.head.weight.detach()
    assert state.step > 8
    assert torch.allclose(state.averaged.head.weight, expected, atol=1e-7)


def test_a_loss_that_is_not_finite_names_its_step(digits, device, small):
    state, setup = fresh(small, digits.train, device)

    class Poison(nn.Module):
        def forward(self, images):
            return setup.normalize(images) * (float("nan") if state.step == 3 else 1.0)

    with pytest.raises(NonFiniteLossError, match="nan at step 4"):
        list(train_epochs(state, replace(setup, normalize=Poison())))


def test_weights_that_are_not_finite_are_found_at_the_epochs_end(digits, device, small):
    state, setup = fresh(small, digits.train, device)

    def poison(now) -> bool:
        if now.step == 6:  # the last update of the first epoch comes next
            for p in now.optimizers[1].param_groups[1]["params"]:
                now.optimizers[1].state[p]["exp_avg"].fill_(float("inf"))
        return True

    with pytest.raises(NonFiniteLossError, match="weights are not finite after step 7"):
        list(train_epochs(state, setup, watch=poison))


def test_statistics_that_are_not_finite_are_found_at_the_epochs_end(digits, device, small):
    """A variance may overflow while all weights and losses are finite."""
    state, setup = fresh(small, digits.train, device)
    for name, buffer in state.model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="weights are not finite after step 7"):
        list(train_epochs(state, setup))


def test_dropout_is_drawn_from_the_counters_too(digits, device, small):
    dropped = ResNetConfig((4, 8), (1, 1), dropout=0.5)
    recipe = replace(small, model=dropped, optimizer="sgd", lr=0.1)

    def weights(noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        state, setup = fresh(recipe, digits.train, device)
        for _ in steps(state, setup):
            torch.rand(noise)  # whoever else draws from the global generator
        return torch.cat([p.detach().flatten() for p in state.model.parameters()])

    assert torch.equal(weights(1), weights(2))


def test_the_watcher_stops_between_two_steps(digits, device, small):
    state, setup = fresh(small, digits.train, device)
    rows = train_epochs(state, setup, watch=lambda s: s.step < 3)
    assert list(rows) == []
    assert state.step == 3
    assert len(state.losses) == 3


def test_bfloat16_trains_with_float32_weights(digits, small):
    device = CPU("cpu", "bfloat16", compiled=False)
    plain = {"augment": (), "mix": (), "progressive_resizing": (), "ema": 0.0}
    recipe, few = replace(small, epochs=4, batch_size=50, **plain), digits.train.subset(range(600))
    few, test = (
        replace(each, images=each.images[:, :, ::2, ::2].contiguous())  # 16 px
        for each in (few, digits.test)
    )
    state, setup = fresh(recipe, few, device)
    rows = list(train_epochs(state, setup, test))
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert rows[-1]["val_accuracy"] > 0.6


def test_a_batch_in_parts_gives_the_loss_and_the_step_of_the_whole(digits, device):
    # Without batch norm, whose statistics are of a part: a network of one linear layer.
    def outcome(accumulate: int) -> tuple[torch.Tensor, StepResult]:
        recipe = Recipe(optimizer="sgd", lr=0.1, batch_size=90, accumulate=accumulate, augment=())
        recipe = replace(recipe, progressive_resizing=(), epochs=1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        state = TrainState(model, OPTIMIZERS["sgd"](model, recipe), ema=None)
        setup = Setup(recipe, digits.train, Normalize(*channel_stats(digits.train)), device)
        result = next(steps(state, setup))
        return model[1].weight.detach(), result

    (whole, one), (parts, four) = outcome(1), outcome(4)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.allclose(one.loss, four.loss, atol=1e-6)
    assert one.correct == four.correct


def test_a_rows_gradient_norm_is_that_of_the_epochs_last_step(digits, device, small):
    state, setup = fresh(small, digits.train, device)
    norms: list[float] = []

    def look(*_) -> None:
        squares = (
            float(p.grad.double().square().sum())
            for p in state.model.parameters()
            if p.grad is not None
        )
        norms.append(sum(squares) ** 0.5)

    state.optimizers[0].register_step_pre_hook(look)
    rows = list(train_epochs(state, setup))
    per_epoch = StepCounts(small, len(digits.train)).steps_per_epoch
    expected = norms[per_epoch - 1 :: per_epoch]
    assert [row["gradient_norm"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert len(norms) == 2 * per_epoch


def test_an_epoch_with_copies_has_as_many_steps_and_counts_all_its_images(digits, device, small):
    recipe = replace(small, augment_repeats=2, epochs=1)
    state, setup = fresh(recipe, digits.train, device)
    seen: list[int] = []
    state.model.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    (row,) = train_epochs(state, setup)
    assert row["step"] == len(digits.train) // 200
    assert sum(seen) == 2 * 200 * row["step"]
    correct = row["train_accuracy"] * sum(seen)
    assert correct == pytest.approx(round(correct), abs=1e-3)
    assert 0 < row["train_accuracy"] < 1


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loss_of_a_mixture_is_the_shares_of_its_labels_losses(
    digits, device, small, accumulate
):
    recipe = replace(
        small, mix=(("mixup", {"alpha": 1.0}),), accumulate=accumulate, progressive_resizing=()
    )
    state, setup = fresh(recipe, digits.train, device)
    images, targets = next(batches(digits.train, StepCounts(recipe, len(digits.train))))
    logs, right = [], 0
    for part, shares in zip(images.chunk(accumulate), targets.chunk(accumulate), strict=True):
        log = state.model(setup.normalize(part)).log_softmax(1).detach()
        smoothed = 0.8 * shares + 0.2 / 10
        logs += [-(row * log_row).sum() for row, log_row in zip(smoothed, log, strict=True)]
        right += int((log.argmax(1) == shares.argmax(1)).sum())
    state, _ = fresh(recipe, digits.train, device)  # the statistics of BN moved
    result = next(steps(state, setup))
    assert float(result.loss) == pytest.approx(float(torch.stack(logs).mean()), rel=1e-5)
    assert int(result.correct) == right


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_restarted_state_is_a_fresh_one_and_keeps_its_compiled_step(
    optimizer, digits, device, small
):
    recipe = replace(small, optimizer=optimizer, lr=0.01, ema=0.9, freeze_stem_at=0.5)
    kept, setup = fresh(recipe, digits.train, device)
    for _ in steps(kept, setup):
        pass
    function, other = kept.function, replace(setup, recipe=replace(recipe, seed=7))
    restart_(kept, other)
    new = start(other)
    for state in (kept, new):
        for _ in steps(state, other):
            pass
    assert kept.function is function is not None
    for part in ("model", "ema"):
        again, expected = (getattr(state, part).state_dict() for state in (kept, new))
        assert all(again[name].equal(expected[name]) for name in expected)


def test_another_recipe_has_a_step_of_its_own(digits, device, small):
    state, setup = fresh(small, digits.train, device)
    next(steps(state, setup))
    before = state.function
    next(steps(state, replace(setup, recipe=replace(small, label_smoothing=0.3))))
    assert state.function is not before


def test_the_loop_names_each_part_of_a_step_and_computes_the_same(digits, device, small):
    recipe = replace(small, sam_rho=0.05, selector=SpeedNetConfig((4,)), epochs=1)
    marks: list[str] = []

    def losses(mark) -> list[float]:
        state, setup = fresh(recipe, digits.train, device)
        return [float(result.loss) for result in steps(state, setup, mark=mark)]

    assert losses(marks.append) == losses(None)
    twice = ["forward", "backward"] * recipe.accumulate * 2  # SAM computes each gradient twice
    first = ["data and augmentation", "normalise and resize", "selector"]
    assert marks[: marks.index("optimizer") + 2] == [
        *(*first, *twice, "optimizer", "average of the weights")
    ]
