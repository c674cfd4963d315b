"""Runs that val ends or chooses from: the same after any kill, and what they say of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.models.speednet import SpeedNetConfig
from leanres.report.card import model_card
from leanres.report.page import write_report
from leanres.runs import fit, layout
from leanres.runs import run as runs
from leanres.runs.checkpoint import saved
from leanres.runs.predictor import load_predictor
from leanres.runs.run_json import INFO, read_info
from leanres.runs.weights import WEIGHTS
from leanres.training.device import CPU
from leanres.training.loop import TrainState
from leanres.training.recipe import Recipe

RECIPE = Recipe(
    model=SpeedNetConfig((8,)),
    epochs=40,
    batch_size=100,
    augment=(),
    ema=0.8,
    stop_after=2,
    keep_best=True,
)
CPU32 = CPU("cpu", "float32", compiled=False)


@pytest.fixture(scope="module")
def data(digits: Dataset) -> Dataset:
    """300 digits to train on; val labels are shuffled, so that no accuracy rises for long."""
    train, val = digits.train.subset(range(300)), digits.train.subset(range(300, 500))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    return replace(digits, train=train, val=Split(val.images, val.labels[order], val.classes))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("early") / "whole"
    fit.fit(folder, RECIPE, data, CPU32)
    return folder


def digest(folder: Path) -> list[str]:
    state = saved(folder / layout.CHECKPOINTS)[0] / "state.safetensors"
    files = [folder / WEIGHTS, folder / layout.HISTORY, folder / layout.PREDICTIONS, state]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def killed_at(step: int) -> Callable[[TrainState], None]:
    def watch(state: TrainState) -> None:
        if state.step == step:
            raise KeyboardInterrupt

    return watch


def test_the_result_is_of_the_best_epoch_and_says_that_val_chose_it(whole, data):
    accuracies = [row["val_accuracy"] for row in layout.read_history(whole)[0]]
    best = accuracies.index(max(accuracies)) + 1
    result = read_info(whole)["result"]
    assert (result["epoch"], result["last_epoch"]) == (best, best + 2)
    assert result["chosen_by"] == "val"
    assert result["split"] == "test"
    predictor = load_predictor(whole, "cpu")
    assert predictor.evaluate(data.val)["accuracy"] == pytest.approx(max(accuracies))
    assert predictor.evaluate(data.test)["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("saving", ["each epoch", "seldom"])
def test_a_run_killed_at_a_step_and_resumed_equals_the_uninterrupted_one(
    whole, data, tmp_path, monkeypatch, saving
):
    monkeypatch.setattr(fit, "SAVE_SHARE", 0 if saving == "each epoch" else 1e6)
    result = read_info(whole)["result"]
    best, last = 3 * result["epoch"], 3 * result["last_epoch"]
    for step in (2, best, best + 1, last - 1, last):
        folder = tmp_path / f"{step}"
        run = runs.create(folder, RECIPE, data, CPU32)
        with pytest.raises(KeyboardInterrupt):
            fit.complete(run, killed_at(step))
        fit.resume(folder, dataset=data, device=CPU32)
        assert digest(folder) == digest(whole), step


def test_a_run_killed_before_its_measurement_is_measured_only(whole, data, tmp_path, monkeypatch):
    def killed(run: runs.Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path / "run", RECIPE, data, CPU32)
    assert "result" not in read_info(tmp_path / "run")
    steps = []
    run = runs.reopen(tmp_path / "run", lambda _: data, lambda _: CPU32)
    fit.complete(run, lambda state: steps.append(state.step))
    assert steps == []
    assert digest(tmp_path / "run") == digest(whole)


def test_more_epochs_turn_early_stopping_off_and_a_kill_does_not_turn_it_on(whole, data, tmp_path):
    last = read_info(whole)["result"]["last_epoch"]
    ends = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        fit.fit(folder, RECIPE, data, CPU32)
        run = runs.reopen(folder, lambda _: data, lambda _: CPU32, last + 3)
        assert run.notes == [
            f"it had ended early, after epoch {last}: now it trains to epoch {last + 3},"
            " stop_after = 0"
        ]
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                fit.complete(run, killed_at(3 * last + 5))
            assert "result" not in read_info(folder)
            result = fit.resume(folder, dataset=data, device=CPU32)
        else:
            result = fit.complete(run)
        accuracies = [row["val_accuracy"] for row in layout.read_history(folder)[0]]
        assert len(accuracies) == result["last_epoch"] == last + 3
        assert result["epoch"] == accuracies.index(max(accuracies)) + 1
        ends.append(digest(folder))
    assert ends[0] == ends[1]


def test_a_run_that_was_not_stopped_by_val_is_extended_as_any(data, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    result = fit.fit(tmp_path / "run", recipe, data, CPU32)
    assert (result["epoch"], result["last_epoch"]) == (1, 1)  # of one epoch, that one
    run = runs.reopen(tmp_path / "run", lambda _: data, lambda _: CPU32, 40)
    assert run.notes == []
    assert run.setup.recipe == RECIPE
    run.release()


def test_stop_after_alone_measures_the_last_epoch(data, tmp_path):
    result = fit.fit(tmp_path / "run", replace(RECIPE, keep_best=False), data, CPU32)
    assert result["epoch"] == result["last_epoch"] < 40
    assert result["chosen_by"] == "val"


def test_without_val_images_fit_refuses_before_it_makes_a_folder(digits, tmp_path):
    with pytest.raises(UserError, match=r"keep_best chooses an epoch on val.*--set val=0.1"):
        fit.fit(tmp_path / "run", RECIPE, digits, CPU32)
    assert not (tmp_path / "run").exists()


def test_val_is_measured_after_each_epoch_also_where_only_the_end_counts(data, tmp_path):
    origin = {"validate": False, "measure": "val"}
    run = runs.create(tmp_path / "run", RECIPE, data, CPU32, origin)
    result = fit.complete(run)
    accuracies = [row["val_accuracy"] for row in layout.read_history(tmp_path / "run")[0]]
    assert result["accuracy"] == pytest.approx(max(accuracies))
    no_val = replace(data, val=None)
    with pytest.raises(UserError, match="there are no val images"):
        runs.create(tmp_path / "other", RECIPE, no_val, CPU32, origin)


def test_a_figure_on_the_images_that_chose_is_marked_in_page_and_card(data, tmp_path):
    run = runs.create(tmp_path / "run", RECIPE, data, CPU32, {"measure": "val", "tta": "none"})
    result = fit.complete(run)
    told = f"epoch {result['epoch']} of {result['last_epoch']}, chosen on these same images"
    page = write_report(tmp_path / "run", data).read_text()
    assert f"The weights are those of {told} (optimistic)." in page
    assert f"training ended early, after epoch {result['last_epoch']} of 40" in page
    card = model_card(tmp_path / "run", tmp_path / "run" / WEIGHTS, data, "cpu")
    assert card.count(told) == 2


def test_a_damaged_choice_is_named(whole):
    info = json.loads((whole / INFO).read_text())
    for key, bad in (("chosen_by", "test"), ("epoch", 0), ("last_epoch", "9")):
        folder = whole.parent / f"bad-{key}"
        folder.mkdir()
        changed = info | {"result": info["result"] | {key: bad}}
        (folder / INFO).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=f"result.{key} cannot be"):
            read_info(folder)
