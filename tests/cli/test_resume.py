"""`leanres resume`; that it equals the uninterrupted run is tested in tests/runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the trained run that a test may change."""
    return shutil.copytree(run_folder, tmp_path / "run")


def test_resuming_with_other_threads_says_that_it_will_not_be_bit_identical(
    leanres, run, keep_threads
):
    info = json.loads((run / "run.json").read_text())
    before = info["hardware"]["threads"]
    now = 1 if before > 1 else 2
    done = leanres("resume", run, "--epochs", 7, "--threads", now, "--no-report")
    assert done.code == 0, done.err
    (note,) = (line for line in done.err.splitlines() if "bit-identical" in line)
    assert note.startswith("note: results will not be bit-identical to an uninterrupted run: ")
    assert f"threads changed from {before} to {now}" in note
    assert torch.get_num_threads() == now


def test_resuming_on_the_same_machine_notes_nothing(leanres, run, keep_threads):
    done = leanres("resume", run, "--epochs", 7, "--no-report")
    assert done.code == 0
    assert "bit-identical" not in done.err
    assert "epoch   7/7" in done.out


def test_resuming_with_other_kernels_says_so(leanres, run, keep_threads, monkeypatch):
    monkeypatch.setattr("leanres.training.device.Device.kernels", "PyTorch's: turned off")
    done = leanres("resume", run, "--epochs", 7, "--no-report")
    before = json.loads((run / "run.json").read_text())["hardware"]["kernels"]
    assert f"kernels changed from {before} to PyTorch's: turned off" in done.err
    assert ", kernels: PyTorch's: turned off, seed" in done.out


def test_a_finished_run_is_refused_unless_there_is_more_to_do(leanres, mistake, run):
    mistake(leanres("resume", run), "is finished (6 epochs, measured on test)", "--epochs N")
    mistake(leanres("resume", run, "--measure", "train"), "--measure train: give test or val")


def test_a_run_that_ended_early_says_so_and_is_trained_on_by_more_epochs(
    leanres, mistake, tiny, tmp_path
):
    run = tmp_path / "run"
    words = ["train", "digits", "--data", "digits", *tiny, "--epochs", 30, "--out", run]
    for setting in ("optimizer=sgd", "lr=1e-9", "val=0.1", "stop_after=1", "keep_best=true"):
        words += ["--set", setting]
    done = leanres(*words)
    result = json.loads((run / "run.json").read_text())["result"]
    last = result["last_epoch"]
    assert f"ended early, after epoch {last} of 30: no better val accuracy in 1 epoch\n" in done.out
    assert f"; epoch {last - 1} of {last}, chosen on val\n" in done.out
    mistake(
        leanres("resume", run),
        f"is finished ({last} of 30 epochs, ended early by stop_after = 1, measured on test)",
        "--epochs N extends it",
    )
    done = leanres("resume", run, "--epochs", last + 2, "--no-report")
    assert f"note: it had ended early, after epoch {last}: now it trains to epoch" in done.err
    assert f"epoch {last + 2:>3}/{last + 2} " in done.out
    info = json.loads((run / "run.json").read_text())
    assert (info["recipe"]["stop_after"], info["result"]["last_epoch"]) == (0, last + 2)
    mistake(leanres("resume", run), f"is finished ({last + 2} epochs, measured on test)")
