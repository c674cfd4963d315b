"""Runs that val ends or chooses from: the same after any kill, and what they say of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import leanres
from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.report.card import model_card
from leanres.report.page import write_report
from leanres.runs import fit, layout
from leanres.runs import run as runs
from leanres.runs.checkpoint import saved
from leanres.runs.ensemble import gain_lines
from leanres.runs.predictor import load_predictor
from leanres.runs.run_json import INFO, read_info
from leanres.runs.weights import WEIGHTS
from leanres.training.device import CPU
from leanres.training.loop import TrainState

CPU32 = CPU("cpu", "float32", compiled=False)


@pytest.fixture(scope="module")
def whole(noisy, tmp_path_factory, stopping) -> Path:
    folder = tmp_path_factory.mktemp("early") / "whole"
    fit.fit(folder, stopping, noisy, CPU32)
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


def test_the_result_is_of_the_best_epoch_and_says_that_val_chose_it(whole, noisy):
    accuracies = [row["val_accuracy"] for row in layout.read_history(whole)[0]]
    best = accuracies.index(max(accuracies)) + 1
    result = read_info(whole)["result"]
    assert (result["epoch"], result["last_epoch"]) == (best, best + 2)
    assert result["chosen_by"] == "val"
    assert result["split"] == "test"
    predictor = load_predictor(whole, "cpu")
    assert predictor.evaluate(noisy.val)["accuracy"] == pytest.approx(max(accuracies))
    assert predictor.evaluate(noisy.test)["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("saving", ["each epoch", "seldom"])
def test_a_run_killed_at_a_step_and_resumed_equals_the_uninterrupted_one(
    whole, noisy, tmp_path, monkeypatch, saving, stopping
):
    monkeypatch.setattr(fit, "SAVE_SHARE", 0 if saving == "each epoch" else 1e6)
    result = read_info(whole)["result"]
    best, last = 3 * result["epoch"], 3 * result["last_epoch"]
    for step in (2, best, best + 1, last - 1, last):
        folder = tmp_path / f"{step}"
        run = runs.create(folder, stopping, noisy, CPU32)
        with pytest.raises(KeyboardInterrupt):
            fit.complete(run, killed_at(step))
        fit.resume(folder, dataset=noisy, device=CPU32)
        assert digest(folder) == digest(whole), step


def test_a_run_killed_before_its_measurement_is_measured_only(
    whole, noisy, tmp_path, monkeypatch, stopping
):
    def killed(run: runs.Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path / "run", stopping, noisy, CPU32)
    assert "result" not in read_info(tmp_path / "run")
    steps = []
    run = runs.reopen(tmp_path / "run", lambda _: noisy, lambda _: CPU32)
    fit.complete(run, lambda state: steps.append(state.step))
    assert steps == []
    assert digest(tmp_path / "run") == digest(whole)


def test_more_epochs_turn_early_stopping_off_and_a_kill_does_not_turn_it_on(
    whole, noisy, tmp_path, stopping
):
    last = read_info(whole)["result"]["last_epoch"]
    ends = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        fit.fit(folder, stopping, noisy, CPU32)
        run = runs.reopen(folder, lambda _: noisy, lambda _: CPU32, last + 3)
        assert run.notes == [
            f"it had ended early, after epoch {last}: now it trains to epoch {last + 3},"
            " stop_after = 0"
        ]
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                fit.complete(run, killed_at(3 * last + 5))
            assert "result" not in read_info(folder)
            result = fit.resume(folder, dataset=noisy, device=CPU32)
        else:
            result = fit.complete(run)
        accuracies = [row["val_accuracy"] for row in layout.read_history(folder)[0]]
        assert len(accuracies) == result["last_epoch"] == last + 3
        assert result["epoch"] == accuracies.index(max(accuracies)) + 1
        ends.append(digest(folder))
    assert ends[0] == ends[1]


def test_a_run_that_was_not_stopped_by_val_is_extended_as_any(noisy, tmp_path, stopping):
    recipe = replace(stopping, epochs=1)
    result = fit.fit(tmp_path / "run", recipe, noisy, CPU32)
    assert (result["epoch"], result["last_epoch"]) == (1, 1)  # of one epoch, that one
    run = runs.reopen(tmp_path / "run", lambda _: noisy, lambda _: CPU32, 40)
    assert run.notes == []
    assert run.setup.recipe == stopping
    run.release()


def test_stop_after_alone_measures_the_last_epoch(noisy, tmp_path, stopping):
    result = fit.fit(tmp_path / "run", replace(stopping, keep_best=False), noisy, CPU32)
    assert result["epoch"] == result["last_epoch"] < 40
    assert result["chosen_by"] == "val"


def test_without_val_images_fit_refuses_before_it_makes_a_folder(digits, tmp_path, stopping):
    with pytest.raises(UserError, match=r"keep_best chooses an epoch on val.*--set val=0.1"):
        fit.fit(tmp_path / "run", stopping, digits, CPU32)
    assert not (tmp_path / "run").exists()


def test_val_is_measured_after_each_epoch_also_where_only_the_end_counts(noisy, tmp_path, stopping):
    origin = {"validate": False, "measure": "val"}
    run = runs.create(tmp_path / "run", stopping, noisy, CPU32, origin)
    result = fit.complete(run)
    accuracies = [row["val_accuracy"] for row in layout.read_history(tmp_path / "run")[0]]
    assert result["accuracy"] == pytest.approx(max(accuracies))
    no_val = replace(noisy, val=None)
    with pytest.raises(UserError, match="there are no val images"):
        runs.create(tmp_path / "other", stopping, no_val, CPU32, origin)


def test_a_figure_on_the_images_that_chose_is_marked_in_page_and_card(noisy, tmp_path, stopping):
    run = runs.create(tmp_path / "run", stopping, noisy, CPU32, {"measure": "val", "tta": "none"})
    result = fit.complete(run)
    told = f"epoch {result['epoch']} of {result['last_epoch']}, chosen on these same images"
    page = write_report(tmp_path / "run", noisy).read_text()
    assert f"The weights are those of {told} (optimistic)." in page
    assert f"training ended early, after epoch {result['last_epoch']} of 40" in page
    card = model_card(tmp_path / "run", tmp_path / "run" / WEIGHTS, noisy, "cpu")
    assert card.count(told) == 2


def test_evaluate_marks_figures_on_the_images_that_chose(whole, noisy, tmp_path):
    result = read_info(whole)["result"]
    chosen = {key: result[key] for key in ("epoch", "last_epoch", "chosen_by")}
    on_val = leanres.evaluate(whole, noisy, split="val", device="cpu")
    assert on_val.items() >= chosen.items()
    assert "chosen_by" not in leanres.evaluate(whole, noisy, device="cpu")
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    both = leanres.evaluate([whole, other], noisy, split="val", device="cpu")
    assert all(row.items() >= chosen.items() for row in both["members"])
    told = "optimistic: these images chose the epoch of 2 of the networks"
    assert gain_lines(both)[-1] == told
    assert told not in gain_lines(leanres.evaluate([whole, other], noisy, device="cpu"))


def test_a_damaged_choice_is_named(whole):
    info = json.loads((whole / INFO).read_text())
    for key, bad in (("chosen_by", "test"), ("epoch", 0), ("last_epoch", "9")):
        folder = whole.parent / f"bad-{key}"
        folder.mkdir()
        changed = info | {"result": info["result"] | {key: bad}}
        (folder / INFO).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=f"result.{key} cannot be"):
            read_info(folder)
