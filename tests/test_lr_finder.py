"""The LR range test: it leaves no trace, finds the known answer, and refuses what has none."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel

from leanres.cli import main
from leanres.data.sources import load
from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError
from leanres.lr_finder import (
    CHECK_EVERY,
    MODES,
    RULES,
    Curve,
    LRRange,
    Ramp,
    descent,
    find_lr,
    hold,
    judge,
    lowest,
    range_test,
    running_mean,
    smooth,
)
from leanres.lr_plot import ASCII, chart, figure, label
from leanres.models.speednet import SpeedNetConfig
from leanres.training.engine import Engine, Normalize
from leanres.training.loop import TrainState, start, steps
from leanres.training.optim import OPTIMIZERS, set_lr_
from leanres.training.recipe import Plan, Recipe

TINY = Recipe(
    model=SpeedNetConfig((8, 16)),
    epochs=2,
    batch_size=50,
    augment=(("crop", {"padding": 2}),),
    resolution=((0.0, 0.5), (0.5, 1.0)),
    seed=3,
)
QUICK = Ramp(lr_min=1e-4, steps=30)


@pytest.fixture(scope="module")
def digits() -> Split:
    return load("digits").train.subset(range(300))


@pytest.fixture
def engine() -> Engine:
    return Engine("cpu", "float32", compiled=False)


def trained(recipe: Recipe, split: Split, engine: Engine, count: int = 3):
    """A state in the middle of its training, its normalisation, and the generator it stands in."""
    normalize = Normalize(*channel_stats(split))
    state = start(recipe, split, normalize, engine)
    run = steps(state, split, recipe, normalize, engine)
    for _ in range(count):
        state.losses.append(next(run).loss)
    return state, normalize, run


def fingerprint(state: TrainState) -> str:
    """sha256 over all that a range test could leave a trace in."""
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


def test_the_fingerprint_sees_each_thing_that_could_change(digits, engine):
    state, _, _ = trained(replace(TINY, ema=0.9), digits, engine)
    seen = [fingerprint(state)]
    changes = (
        lambda: state.model.stem.bias.data.add_(1e-3),
        lambda: state.model.stages[0].norm1.running_mean.add_(1e-3),
        lambda: state.model.eval(),
        lambda: state.optimizers[0].param_groups[0].update(lr=1.0),
        lambda: state.model.head.requires_grad_(False),
        lambda: setattr(state.model.head.weight, "grad", torch.zeros(10, 16)),
        lambda: state.ema.module.head.weight.data.add_(1e-3),
        lambda: torch.rand(1),
        lambda: setattr(state, "step", 9),
    )
    for change in changes:
        change()
        seen.append(fingerprint(state))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_leaves_no_trace_whatever_the_optimizer(digits, engine, optimizer):
    recipe = replace(TINY, optimizer=optimizer)
    state, normalize, _ = trained(recipe, digits, engine)
    before = fingerprint(state)
    with suppress(UserError):  # of an answer there may be none; the trace is what counts
        range_test(state, digits, recipe, normalize, engine, QUICK)
    assert fingerprint(state) == before


def test_a_state_that_has_not_taken_a_step_stays_without_gradients_and_lr_marks(digits, engine):
    state, normalize, _ = trained(TINY, digits, engine, count=0)
    range_test(state, digits, TINY, normalize, engine, QUICK)
    assert state.step == 0
    assert all(p.grad is None for p in state.model.parameters())
    assert all("peak_lr" not in g for o in state.optimizers for g in o.param_groups)
    assert all(not o.state for o in state.optimizers)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", id="under_autocast_to_bfloat16")]
)
def test_it_leaves_no_trace_with_an_average_dropout_and_gradients(digits, precision):
    engine = Engine("cpu", precision, compiled=False)
    recipe = replace(TINY, ema=0.9)
    state, normalize, _ = trained(recipe, digits, engine)
    state.model.head = nn.Sequential(nn.Dropout(0.2), state.model.head)
    state.ema = AveragedModel(state.model)
    for p in state.model.stages.parameters():
        p.grad = torch.ones_like(p)
    state.model.eval()
    before = fingerprint(state)
    found = range_test(state, digits, recipe, normalize, engine, QUICK)
    assert fingerprint(state) == before
    assert found.lr_min < found.lr_max


def test_a_network_that_draws_from_the_global_generator_leaves_it_alone_and_repeats(digits, engine):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.01 * torch.randn_like(x)

    state, normalize, _ = trained(TINY, digits, engine)
    state.model.head = nn.Sequential(Noisy(), state.model.head)
    before = fingerprint(state)
    found = [range_test(state, digits, TINY, normalize, engine, QUICK) for _ in range(2)]
    assert fingerprint(state) == before
    assert found[0] == found[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_it_leaves_no_trace_when_it_is_interrupted_or_diverges(digits, engine, error):
    state, normalize, _ = trained(replace(TINY, optimizer="sgd"), digits, engine)

    class Bomb(nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            if error and self.calls == 7:
                raise error
            return normalize(images) * (math.inf if self.calls == 7 else 1)

    before = fingerprint(state)
    with pytest.raises(error or UserError):
        range_test(state, digits, replace(TINY, optimizer="sgd"), Bomb(), engine, QUICK)
    assert fingerprint(state) == before


def test_a_training_goes_on_bit_for_bit_as_if_there_had_been_no_test(digits, engine):
    def losses(with_test: bool) -> list[float]:
        state, normalize, run = trained(TINY, digits, engine, count=4)
        if with_test:
            range_test(state, digits, TINY, normalize, engine, QUICK)
        return [float(result.loss) for result in run]

    assert losses(True) == losses(False)


def test_a_range_test_repeats_and_another_seed_gives_another_curve(digits, engine):
    found = [
        find_lr(replace(TINY, seed=seed), digits, engine, **asdict(QUICK)) for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert found[0].losses != found[2].losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_gets_a_range_within_the_tested_one(digits, engine, optimizer):
    recipe = replace(TINY, optimizer=optimizer, augment=(), resolution=())
    ramp = Ramp(lr_min=1e-4, lr_max=100, steps=50)
    found = find_lr(recipe, digits, engine, **asdict(ramp))
    assert ramp.lr_min <= found.lr_min < found.lr_max < ramp.lr_max
    assert set(found.suggestions) == set(RULES)


def test_all_groups_rise_together_and_keep_their_ratio(digits, engine, monkeypatch):
    seen: list[list[float]] = []

    def spy(optimizers, factor) -> None:
        set_lr_(optimizers, factor)
        seen.append([group["lr"] for o in optimizers for group in o.param_groups])

    state, normalize, _ = trained(TINY, digits, engine)
    monkeypatch.setattr("leanres.training.loop.set_lr_", spy)
    found = range_test(state, digits, TINY, normalize, engine, QUICK)
    lrs = np.array(seen)[: len(found.lrs)]
    np.testing.assert_allclose(lrs[:, 0], found.lrs, rtol=1e-12)
    np.testing.assert_allclose(lrs[:, 1] / lrs[:, 0], TINY.bias_lr / TINY.lr, rtol=1e-12)
    np.testing.assert_allclose(
        lrs[:, 2] / lrs[:, 0], TINY.head_lr / 16 / TINY.lr, rtol=1e-12
    )  # of 16 inputs
    tuned = replace(TINY, **found.settings(TINY))
    assert tuned.lr == found.lr_max
    assert tuned.bias_lr / tuned.lr == pytest.approx(TINY.bias_lr / TINY.lr)
    assert tuned.head_lr / tuned.lr == pytest.approx(TINY.head_lr / TINY.lr)
    assert found.settings(replace(TINY, optimizer="sgd")) == {"lr": found.lr_max}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_settings_set_every_groups_lr(digits, engine, optimizer):
    found = made(sigmoid(-1.5), Ramp())
    recipe = replace(TINY, optimizer=optimizer)
    before, after = (
        [
            g["lr"]
            for o in OPTIMIZERS[optimizer](trained(r, digits, engine, 0)[0].model, r)
            for g in o.param_groups
        ]
        for r in (recipe, replace(recipe, **found.settings(recipe)))
    )
    assert after == pytest.approx([lr * found.lr_max / TINY.lr for lr in before])


def test_the_loss_is_read_every_ten_steps_only(digits, engine, monkeypatch):
    reads = []
    original = torch.Tensor.tolist
    state, normalize, _ = trained(TINY, digits, engine)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (reads.append(t.shape), original(t))[1])
    range_test(state, digits, TINY, normalize, engine, replace(QUICK, steps=25, lr_max=1.0))
    assert [tuple(r) for r in reads if len(r) == 1] == [(CHECK_EVERY,), (CHECK_EVERY,), (5,)]


def test_the_phase_of_the_recipe_is_held_however_long_the_test_is():
    plan = Plan(TINY, 300)
    early, late = hold(TINY, 300, 0, 500), hold(TINY, 300, 11, 500)
    for step, held in ((0, early), (11, late)):
        long = Plan(held, 300)
        assert long.total >= step + 500
        assert {long.scale(s) for s in range(long.total)} == {plan.scale(step)}
        assert (long.freeze_stem <= step) == (plan.freeze_stem <= step)
    assert (plan.scale(0), plan.scale(11)) == (0.5, 1.0)


def test_a_dataset_is_tested_on_what_the_recipe_would_train_on(digits, engine):
    whole = Dataset("digits", digits, None, None)
    recipe = replace(TINY, val=100)
    held_out = find_lr(recipe, whole, engine, **asdict(QUICK))
    assert held_out.losses != find_lr(recipe, digits, engine, **asdict(QUICK)).losses
    with pytest.raises(UserError, match="Padding size"):
        find_lr(
            replace(TINY, augment=(("crop", {"padding": 99, "mode": "reflect"}),)), whole, engine
        )


# A problem with a known answer.


@pytest.fixture
def bowl():
    """Two classes of which neither is right: near its minimum the loss is a quadratic of W.

    Cross-entropy with targets close to (0.5, 0.5) curves by at most 1/2 times the largest
    eigenvalue of the inputs' second moment: full-batch descent diverges above 2 / that.
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
        resolution=(),
    )

    def fresh() -> TrainState:
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
        nn.init.normal_(model[1].weight, std=0.5, generator=torch.Generator().manual_seed(1))
        return TrainState(model, OPTIMIZERS["sgd"](model, recipe), None)

    return fresh, split, recipe, normalize, 2 / sharpest


def final_loss(bowl, engine, lr: float) -> float:
    fresh, split, recipe, normalize, _ = bowl
    state = fresh()
    run = steps(state, split, recipe, normalize, engine, lambda step: lr / recipe.lr)
    return [float(result.loss) for result in run][-1]


def test_on_a_quadratic_the_range_ends_below_divergence_and_trains_well(bowl, engine):
    fresh, split, recipe, normalize, threshold = bowl
    assert final_loss(bowl, engine, 0.9 * threshold) < 0.7  # ln 2 is the minimum
    assert final_loss(bowl, engine, 4 * threshold) > 0.75
    state = fresh()
    found = range_test(state, split, recipe, normalize, engine, Ramp(lr_min=1e-4, lr_max=100))
    assert "exceeded 4 times its best" in found.stopped
    assert found.lr_min < found.lr_max < threshold
    assert max(found.suggestions.values()) < threshold
    best = final_loss(bowl, engine, found.lr_max)
    assert best < final_loss(bowl, engine, found.lr_max / 100)
    assert best < 0.75


# Grids, smoothing and rules.


@pytest.mark.parametrize(("low", "high", "n"), [(1e-6, 10.0, 100), (0.01, 0.5, 16)])
def test_the_grids_are_exact(low, high, n):
    rising = Ramp(low, high, n).lrs
    evenly = Ramp(low, high, n, mode="linear").lrs
    np.testing.assert_allclose(
        rising, [low * (high / low) ** (i / (n - 1)) for i in range(n)], rtol=1e-12
    )
    np.testing.assert_allclose(
        evenly, [low + (high - low) * i / (n - 1) for i in range(n)], rtol=1e-12
    )
    for lrs in (rising, evenly):
        assert (lrs[0], lrs[-1], len(lrs)) == (low, high, n)
    assert set(MODES) == {"exponential", "linear"}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.8, 0.98])
def test_smoothing_is_the_weighted_mean_that_a_slow_loop_gives(decay):
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    n = len(values)
    for i in range(n):
        ages = [decay ** abs(i - j) for j in range(n)]
        left = sum(w * v for w, v in zip(ages[: i + 1], values[: i + 1], strict=True))
        both = sum(w * v for w, v in zip(ages, values, strict=True))
        assert running_mean(values, decay)[i] == pytest.approx(left / sum(ages[: i + 1]))
        assert smooth(values, decay)[i] == pytest.approx(both / sum(ages))


def test_a_smoothed_bump_stays_where_it_is():
    bump = [float(i == 50) for i in range(101)]
    assert int(np.argmax(smooth(bump, 0.9))) == 50


def test_the_reach_of_the_smoothing_grows_with_the_steps():
    assert Ramp(steps=100).decay == pytest.approx(0.8)
    assert Ramp(steps=1000).decay == pytest.approx(0.98)
    assert Ramp(steps=100, smoothing=0).decay == 0


def test_the_longest_descent_is_the_one_that_trying_all_gives():
    values = torch.rand(13, generator=torch.Generator().manual_seed(4)).tolist()
    best = max(
        size
        for size in range(1, len(values) + 1)
        for chosen in combinations(values, size)
        if all(a > b for a, b in pairwise(chosen))
    )
    found = descent(values)
    assert len(found) == best
    assert found == sorted(found)
    assert all(values[a] > values[b] for a, b in pairwise(found))


def made(shape, ramp: Ramp) -> LRRange:
    """What is read off a loss that is a function of log10 lr."""
    return judge([shape(math.log10(lr)) for lr in ramp.lrs], ramp)


def sigmoid(at: float, width: float = 0.2):
    return lambda x: 2 - 1.5 / (1 + math.exp(-(x - at) / width)) + 3 * max(0.0, x - 0.3)


@pytest.mark.parametrize(
    "ramp",
    [Ramp(steps=700, smoothing=0), Ramp(0.003, 0.3, 1000, mode="linear", smoothing=0)],
    ids=MODES,
)
def test_the_rules_find_what_a_smooth_curve_was_made_of(ramp):
    found = made(sigmoid(-1.5), ramp)
    assert math.log10(found.suggestions["steepest"]) == pytest.approx(-1.5, abs=0.15)
    lowest_lr = min(ramp.lrs, key=lambda lr: sigmoid(-1.5)(math.log10(lr)))
    assert found.suggestions["minimum"] == lowest_lr / 10
    assert found.suggestions["onset"] < 10**-1.7
    assert found.lr_min < found.suggestions["valley"] < 2
    assert (found.lr_min, found.lr_max) == tuple(found.suggestions[r] for r in found.rules.values())
    assert all(reason.count(".\n") == 0 and len(reason) > 20 for reason in found.reasons.values())


def test_the_valley_lies_two_thirds_along_the_longest_descent():
    curve = Curve([1.0, 10.0, 100.0, 1000.0, 10000.0], [3.0, 4.0, 2.0, 1.0, 0.5], reach=1)
    assert RULES["valley"](curve) == pytest.approx(10 ** (1 + 3 * 2 / 3))
    assert RULES["minimum"](curve) == 1000


def test_a_recovery_beyond_the_first_climb_is_no_second_chance():
    losses = [2.0, 2.0, 1.5, 1.55, 1.0, 1.2, 1.3, 0.9, 0.5]
    assert lowest(losses, least=0.1) == 4
    assert lowest(losses, least=0.4) == 8  # so small a climb does not count


def test_a_loss_that_still_falls_at_the_end_is_answered_and_said():
    found = made(lambda x: 3 - 0.3 * x, Ramp(1e-4, 1e-1, 50))
    assert "still falls at the end" in found.reasons["lr_max"]
    assert found.stopped == "reached lr 0.1 after 50 steps"


def test_where_it_stopped_and_why_is_kept():
    ramp = Ramp(steps=100)
    losses = [sigmoid(-2.0)(math.log10(lr)) for lr in ramp.lrs]
    cut = judge([*losses[:80], math.nan, *losses[81:]], ramp)
    assert cut.stopped == f"the loss was nan at lr {ramp.lrs[80]:.2g}, step 81 of 100"
    assert len(cut.lrs) == len(cut.losses) == len(cut.smoothed) == 80
    blown = judge([*losses[:80], 50.0, 1e9, math.inf], ramp)
    assert "exceeded 4 times its best" in blown.stopped
    assert all(map(math.isfinite, blown.losses))
    json.dumps(blown.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "parts"),
    [
        ([math.nan] * 20, ["nan before the first update", "float32"]),
        ([2.0, 2.0, math.inf, *[2.0] * 17], ["was inf", "step 3 of 20", "lower lr_min"]),
        ([2.0, 900.0, *[1e9] * 8], ["exceeded 4 times", "step 2 of 20", "lower lr_min"]),
        ([2.0] * 20, ["stays at 2", "raise lr_max"]),
        ([2.3 + 0.01 * (-1) ** i for i in range(20)], ["stays at 2.3", "raise lr_max"]),
        ([2.0 + 0.1 * i for i in range(20)], ["never falls below", "lower lr_min"]),
        ([2.0, 1.0, 1.1, *[3.0] * 17], ["lowest at lr", "lower lr_min"]),
    ],
    ids=["not-finite", "soon-inf", "diverges-at-once", "flat", "noise", "rises", "turns-at-once"],
)
def test_a_curve_without_an_answer_is_refused_in_one_line(losses, parts):
    with pytest.raises(UserError) as caught:
        judge(losses, Ramp(steps=20, smoothing=0.0))
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"lr_min": 0}, "give 0 < lr_min < lr_max"),
        ({"lr_min": 1, "lr_max": 1}, "give 0 < lr_min < lr_max"),
        ({"lr_max": math.inf}, "give 0 < lr_min < lr_max"),
        ({"lr_min": math.nan}, "give 0 < lr_min < lr_max"),
        ({"steps": 5}, "steps = 5"),
        ({"mode": "exponentail"}, "did you mean 'exponential'"),
        ({"smoothing": 0.9}, "smoothing = 0.9"),
        ({"diverge_at": 1}, "diverge_at = 1"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(settings, part):
    with pytest.raises(UserError, match=part):
        find_lr(TINY, None, **settings)


def test_an_lr_of_zero_cannot_be_scaled(digits, engine):
    state, normalize, _ = trained(TINY, digits, engine, count=0)
    state.optimizers[0].param_groups[0]["lr"] = 0.0
    with pytest.raises(UserError, match="lr = 0"):
        range_test(state, digits, TINY, normalize, engine, QUICK)


# Pictures and the command.


@pytest.fixture(scope="module")
def found() -> LRRange:
    return made(sigmoid(-1.5), Ramp())


def test_the_figure_shows_both_curves_and_names_every_rule(found, tmp_path):
    drawing = figure(found)
    drawing.savefig(tmp_path / "lr.png")
    axes = drawing.axes[0]
    assert axes.get_xscale() == "log"
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == len(RULES)
    assert any(text.startswith("lr_max, steepest") for text in texts)
    with Image.open(tmp_path / "lr.png") as picture:
        assert np.asarray(picture).std() > 10


def test_the_chart_keeps_its_size_and_marks_the_rules(found):
    lines = chart(found, width=60, height=15).plain.splitlines()
    area, axis, names, marks = lines[:15], lines[15], lines[16], "".join(lines[17:])
    assert all(len(line) == 67 for line in [*area, axis])
    assert all(name in names for name in ("1e-06", "0.001", "10"))
    assert sorted(marks.replace(" ", "")) == sorted(rule[0].upper() for rule in RULES)
    left, right = axis.index("━"), axis.rindex("━")
    assert lines[17 + [line[right : right + 1] for line in lines[17:]].index("S")][right] == "S"
    assert any(line[left : left + 1] == "O" for line in lines[17:])
    assert chart(found, glyphs=ASCII).plain.isascii()
    assert label(found, "valley") == "valley"


def test_a_narrow_range_is_named_by_its_ends():
    narrow = made(lambda x: 3 - x, Ramp(0.02, 0.08, 30))
    shown = chart(narrow).plain.splitlines()[16].split()
    assert shown[-1] == "0.08"
    assert len(shown) == 2


@pytest.fixture
def leanres(capsys):
    """Run the command line in this process: arguments -> exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return int(end.value.code or 0), *capsys.readouterr()

    return call


SMALL = (
    *("find-lr", "digits", "--data", "digits", "--lr-min", 1e-3, "--steps", 32),
    *("--set", "model={family='speednet', widths=[8, 16]}", "--set", "batch_size=64"),
    *("--set", "label_smoothing=0", "--set", "resolution=[]", "--set", "augment=[]"),
    *("--set", "val=0"),
)


def test_find_lr_draws_a_chart_a_table_and_says_how_to_use_it(leanres, tmp_path):
    code, out, err = leanres(
        *SMALL, "--seed", 1, "--set", "lr=0.1", "--out", tmp_path / "a" / "lr.png"
    )
    assert code == 0, err
    assert "━" in out
    assert "\x1b" not in out  # plain where nobody watches
    assert all(f"\n{rule.capitalize()} " in out for rule in RULES)
    last = out.splitlines()[-1]
    assert last.startswith("use it: leanres train digits --set 'model=")
    assert "--data digits --seed 1 --set lr=0." in last
    assert "--set head_lr=" in last
    assert "lr=0.1" not in last.split("--seed")[0]
    with Image.open(tmp_path / "a" / "lr.png") as picture:
        assert picture.size == (1200, 720)


def test_find_lr_as_json_is_the_librarys_answer(leanres):
    code, out, err = leanres(*SMALL, "--json", "--set", "optimizer=adam", "--mode", "exponential")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["lr_min"] < facts["lr_max"]
    assert set(facts["suggestions"]) == set(RULES)
    assert facts["rules"] == {"lr_min": "onset", "lr_max": "steepest"}
    assert len(facts["lrs"]) == len(facts["losses"])


def test_help_names_the_defaults_of_the_library(leanres):
    _, out, _ = leanres("find-lr", "--help")
    words = " ".join(out.split())
    ramp = Ramp()
    for value in (f"{ramp.lr_min:g}.", f"{ramp.lr_max:g}.", f"{ramp.steps}."):
        assert f"default: {value}" in words
    assert f"{ramp.mode} (default)" in words


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lr-min", 2, "--lr-max", 1], "give 0 < lr_min < lr_max"),
        (["--mode", "log"], "no mode 'log'"),
        (["--steps", 3], "give 16 to 100000"),
        (["--out", "lr.jpeg2"], "ends in .png"),
        (["--set", "lrr=1"], "did you mean 'lr'"),
        (["--lr-min", 1e-12, "--lr-max", 1e-11], "raise lr_max"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(leanres, words, part):
    code, _, err = leanres(*SMALL, *words)
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert (code, len(lines)) == (2, 1), err
    assert part in lines[0]


def test_the_state_that_is_tested_may_be_ones_own(digits, engine):
    """Live objects that no recipe built, with an optimizer that OPTIMIZERS has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))
    state = TrainState(model, [torch.optim.RMSprop(model.parameters(), lr=1e-3)], None)
    twin = copy.deepcopy(model.state_dict())
    recipe = replace(TINY, resolution=())
    found = range_test(state, digits, recipe, Normalize(*channel_stats(digits)), engine)
    assert 1e-6 <= found.lr_min < found.lr_max < 10
    assert all(torch.equal(model.state_dict()[name], value) for name, value in twin.items())
