"""`leanres train`."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from leanres.cli.train import _next_folder
from leanres.data.sources import cifar10

TINY = ("--set", "model={family='speednet', widths=[8, 16]}", "--set", "batch_size=20")


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


def test_the_note_on_few_steps_recommends_what_is_not_in_use(leanres, tmp_path, tiny):
    words = ["--data", "digits", "--epochs", 1, *tiny[:2], "--no-report", "--out"]
    done = leanres("train", *words, tmp_path / "a", "--set", "batch_size=1000")
    assert "note: only 1 step of 1,000 images in all: the recipe small-data has" in done.err
    words += [tmp_path / "b", "--set", "val=1200"]
    done = leanres("train", "small-data", *words)
    assert "note: only 3 steps of 64 images in all: give more --epochs, or a smaller" in done.err


@pytest.fixture
def train_alone(tmp_path, digits) -> Path:
    """A folder of 100 digits in train/, and no other split."""
    for i, label in enumerate(digits.train.labels[:100].tolist()):
        folder = tmp_path / "photos" / "train" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits.train.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_without_test_images_a_tenth_of_train_is_held_out_and_measured(
    leanres, tmp_path, train_alone
):
    words = ["--data", train_alone, "--out", tmp_path / "r", "--epochs", 1, *TINY, "--no-report"]
    done = leanres("train", "small-data", *words)
    assert done.code == 0
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    counts = info["data"]
    assert counts["val"] + counts["train"] == 100
    assert 10 <= counts["val"] < 20
    assert info["recipe"]["val"] == 0.1
    assert (info["result"]["split"], info["result"]["n"]) == ("val", counts["val"])
    assert f"{counts['val']} of 100 are held out as val (val = 0.1; --set val=0" in done.err
    # the command that it names measures the same images
    assert f"next: leanres evaluate {tmp_path / 'r'} --split val\n" in done.out
    again = leanres("evaluate", tmp_path / "r", "--split", "val", "--json")
    assert json.loads(again.out)["accuracy"] == info["result"]["accuracy"]


def test_a_run_that_cannot_be_measured_says_so_and_claims_no_predictions(
    leanres, tmp_path, train_alone
):
    words = ["--data", train_alone, "--epochs", 1, *TINY, "--out"]
    whole = leanres("train", "small-data", *words, tmp_path / "whole", "--set", "val=0")
    for path in [*(train_alone / "train" / "3").iterdir()][1:]:
        path.unlink()
    rare = leanres("train", "small-data", *words, tmp_path / "rare", "--no-report")
    assert "so nothing is measured (val = 0.1: class '3' has fewer than 2" in rare.err
    for name, done in {"whole": whole, "rare": rare}.items():
        folder = tmp_path / name
        assert done.code == 0
        assert "not measured: there are no test and no val images" in done.out
        assert "predictions" not in done.out
        assert "evaluate" not in done.out
        assert not (folder / "predictions.parquet").exists()
    assert "was not measured: there were no test" in (tmp_path / "whole/report.html").read_text()
    row = leanres("runs", "--runs", tmp_path, "--results", tmp_path / "no", "--json").out
    assert json.loads(row.splitlines()[0])["status"] == "unmeasured"


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
