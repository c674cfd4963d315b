"""Early stopping and the best epoch: a function of the history, with weights that fit it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from leanres.errors import UserError
from leanres.metrics.inference import predict_logits
from leanres.runs import run as runs
from leanres.training.early_stopping import best_epoch, stopped_early
from leanres.training.loop import restart_, train_epochs
from leanres.training.recipe import Recipe


def history(accuracies: list[float]) -> list[dict]:
    return [{"epoch": e, "val_accuracy": a} for e, a in enumerate(accuracies, 1)]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 7])
def test_training_stops_where_a_counter_of_patience_runs_out(stop_after):
    rng = random.Random(stop_after)
    for _ in range(200):
        accuracies = [rng.choice((0.1, 0.2, 0.3, 0.4)) for _ in range(12)]
        best, waited, ended = 0.0, 0, []
        for accuracy in accuracies:
            waited = 0 if accuracy > best else waited + 1
            best = max(best, accuracy)
            ended.append(waited >= stop_after)
        first = ended.index(True) + 1 if True in ended else 13
        for count in range(min(first, 12) + 1):
            assert stopped_early(history(accuracies[:count]), stop_after) == (count == first)


def test_of_equal_epochs_the_first_is_the_best():
    assert best_epoch(history([0.5, 0.9, 0.2, 0.9])) == 2
    assert best_epoch(history([0.0])) == 1
    assert best_epoch([]) == 0


def test_without_stop_after_nothing_stops():
    assert not stopped_early(history([0.9, *[0.1] * 50]), 0)


def test_the_kept_network_is_the_average_of_the_best_epoch(noisy, stopping, device):
    run = runs.prepare(stopping, noisy, device)
    rows, seen = [], []
    for row in train_epochs(run.state, run.setup, run.val):
        rows.append(row)
        weights = run.state.averaged.state_dict()
        seen.append({name: tensor.clone() for name, tensor in weights.items()})
    accuracies = [row["val_accuracy"] for row in rows]
    best = accuracies.index(max(accuracies))
    assert len(rows) == best + 1 + 2 < 40
    assert run.is_finished
    kept = run.state.kept.state_dict()
    assert all(torch.equal(tensor, seen[best][name]) for name, tensor in kept.items())
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in seen[-1].items())
    logits = predict_logits(run.state.kept, run.val.images, normalize=run.setup.normalize)
    accuracy = (logits.argmax(1) == run.val.labels).double().mean()
    assert float(accuracy) == pytest.approx(max(accuracies))
    assert run.state.kept is not run.state.averaged
    assert list(train_epochs(run.state, run.setup, run.val)) == []  # it has ended


def test_a_state_that_is_restarted_forgets_its_best_epoch(noisy, stopping, device):
    run = runs.prepare(replace(stopping, epochs=1), noisy, device)
    list(train_epochs(run.state, run.setup, run.val))
    assert best_epoch(run.state.history) == 1
    assert run.state.best
    restart_(run.state, run.setup)
    assert not run.state.best
    assert run.state.kept is run.state.averaged


@pytest.mark.parametrize("setting", [{"stop_after": 3}, {"keep_best": True}])
def test_without_val_images_a_recipe_that_needs_them_is_refused(digits, device, setting):
    (name,) = setting
    with pytest.raises(UserError, match=f"{name} chooses an epoch on val.* --set val=0.1"):
        runs.prepare(Recipe(**setting), digits, device)
    run = runs.prepare(Recipe(val=0.1, **setting), digits, device)
    with pytest.raises(UserError, match="there are no val images"):
        next(train_epochs(run.state, run.setup))
