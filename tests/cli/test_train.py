"""`leanres train`."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from leanres.cli.train import _next_folder
from leanres.data.sources import cifar10


def test_train_prints_what_happened_and_what_to_do_next(leanres, mistake, tmp_path, tiny):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *tiny]
    done = leanres("train", "digits", *words)
    assert done.code == 0
    assert "epoch   1/1" in done.out
    assert "test accuracy" in done.out
    assert f"next: leanres evaluate {tmp_path / 'run'}" in done.out
    assert "only" not in done.err
    mistake(leanres("train", "digits", *words), "exists already", "leanres resume")


def test_the_first_line_of_a_run_says_where_and_by_which_kernels_it_computes(
    leanres, tmp_path, tiny, monkeypatch
):
    words = ["--data", "digits", "--epochs", 1, "--tta", "none", *tiny, "--device", "cpu"]
    for kernels in (None, "PyTorch's: no C compiler found"):
        if kernels is not None:
            monkeypatch.setattr("leanres.training.device.Device.kernels", kernels)
        folder = tmp_path / f"run-{kernels is None}"
        lines = leanres("train", "digits", *words, "--out", folder).out.splitlines()
        first = next(line for line in lines if not line.startswith("data ready"))
        hardware = json.loads((folder / "run.json").read_text())["hardware"]
        assert hardware["kernels"] == (kernels or hardware["kernels"]) != ""
        assert f"cpu {hardware['precision']}, kernels: {hardware['kernels']}, seed 0" in first
        assert first.startswith("custom speednet (0.0")
        assert first.endswith(f" -> {folder}")


def test_a_batch_that_leaves_few_steps_is_noted(leanres, tmp_path, tiny):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *tiny[:2]]
    done = leanres("train", *words, "--set", "batch_size=700", "--no-report")
    assert done.code == 0
    assert "note: only 2 steps of 700 images in all" in done.err


def test_a_long_run_states_the_machines_rate_beside_its_time(leanres, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("leanres.runs.fit.LONG_S", 0)
    monkeypatch.setattr("leanres.runs.fit.matrix_rate", lambda device: (1.8349, 4096))
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *tiny]
    words += ["--set", "precision=float32"]
    assert "float32 product on this machine: 1.83 TFLOP/s" in leanres("train", *words).out


def test_train_auto_says_in_one_line_that_it_falls_back_on_the_digits(
    leanres, mistake, tmp_path, tiny, monkeypatch
):
    monkeypatch.delenv("LEANRES_DATA", raising=False)
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    downloads = {"cifar.tar.gz": ("http://127.0.0.1:9/none.tar.gz", "")}
    unreachable = replace(cifar10.CIFAR10, downloads=downloads)
    monkeypatch.setattr("leanres.data.sources.cifar10.CIFAR10", unreachable)
    start = time.perf_counter()
    done = leanres("train", "--data", "auto", "--out", tmp_path / "r", "--epochs", 1, *tiny)
    assert done.code == 0
    assert "training on the embedded digits instead" in done.err
    assert "of digits, 1 epoch of" in done.out
    assert time.perf_counter() - start < 40
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "r"))
    mistake(leanres("train", "--data", "auto"), "holds no CIFAR-10")


def test_measuring_val_without_val_images_is_refused_before_training(
    leanres, mistake, tmp_path, tiny
):
    words = ["train", "--data", "digits", "--measure", "val", "--out", tmp_path / "r", *tiny]
    mistake(leanres(*words), "there are no val images")
    assert not (tmp_path / "r").exists()


def test_json_is_all_that_stdout_gets(leanres, tmp_path, tiny):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *tiny]
    done = leanres("train", "digits", *words, "--json")
    printed = json.loads(done.out)
    assert printed == {
        "run": str(tmp_path / "run"),
        **json.loads((tmp_path / "run" / "run.json").read_text())["result"],
    }
    assert "epoch   1/1" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_is_saved_says_how_to_continue_and_can_be(
    leanres, tmp_path, tiny, monkeypatch, number, code
):
    stops = iter([False, False, True])
    step = "leanres.cli.progress.Live.step"
    with monkeypatch.context() as patch:
        patch.setattr(step, lambda live, state: next(stops) and os.kill(os.getpid(), number))
        words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *tiny]
        done = leanres("train", "digits", *words)
    assert done.code == code
    assert "stopped at step 3 of 12, saved" in done.out
    assert done.out.splitlines()[-1] == f"continue with: leanres resume {tmp_path / 'run'}"
    done = leanres("resume", tmp_path / "run", "--no-report")
    assert done.code == 0
    assert "bit-identical" not in done.err
    assert "test accuracy" in done.out


def test_runs_started_at_once_without_a_folder_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        folders = [*pool.map(_next_folder, ["speed"] * 20)]
    assert {folder.name for folder in folders} == {f"speed-{i}" for i in range(1, 21)}


def test_a_training_that_cannot_begin_leaves_no_folder(leanres, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(leanres("train", "digits", "--data", "digits", "--set", "val=5000"), "val = 5000")
    assert not [*tmp_path.glob("runs/*")]
