"""Runs as processes: killed, stopped, resumed, extended; the folder afterwards."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from forks import ForkedPopen

from leanres.cli import main
from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import MODELS
from leanres.runs import fit, layout
from leanres.runs import run as runs
from leanres.runs.checkpoint import saved
from leanres.runs.layout import CHECKPOINTS, HISTORY, PREDICTIONS
from leanres.runs.predictor import Predictor, load_predictor
from leanres.runs.run_json import read_info
from leanres.runs.stop import Stop
from leanres.runs.weights import WEIGHTS
from leanres.training.loop import TrainState

SETTINGS = [
    "model={family='speednet', widths=[8, 16]}",
    "batch_size=100",
    "ema=0.9",
    "progressive_resizing=[[0.0, 0.5], [0.5, 1.0]]",
    'augment=["alternating_flip", ["crop", {padding = 2}]]',
    "val=100",
]


def train_argv(out: Path, epochs: int = 6) -> list[str | Path]:
    sets = [word for s in SETTINGS for word in ("--set", s)]
    where = [
        "--data",
        "digits",
        "--size",
        "16",
        "--out",
        out,
        "--epochs",
        str(epochs),
        "--threads",
        "1",
    ]
    # the page at a run's end has its own tests
    return ["train", "speed", *where, *sets, "--no-report"]


def resume_argv(folder: Path, *more: str) -> list[str | Path]:
    return ["resume", folder, "--threads", "1", "--no-report", *more]


def command(words: list[str | Path]) -> list[str]:
    return [sys.executable, "-m", "leanres", *map(str, words)]


def digest(folder: Path) -> dict[str, str]:
    """sha256 of what a run's outcome is: weights, metric rows, and the whole last state."""
    files = [folder / WEIGHTS, folder / HISTORY, folder / PREDICTIONS]
    files += [saved(folder / CHECKPOINTS)[0] / "state.safetensors"]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(autouse=True, scope="module")
def _own_threads() -> Iterator[None]:
    """The words above ask for one thread, and some are run in this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run_here(words: list[str | Path]) -> None:
    """In this process, which has imported everything already; it must succeed."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_here(train_argv(folder))
    return folder


def test_a_run_killed_at_random_steps_and_resumed_equals_the_uninterrupted_one(
    uninterrupted, tmp_path
):
    folder, rng = tmp_path / "run", random.Random(7)
    words = command(train_argv(folder))
    for kill in range(2):
        process = ForkedPopen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        steps = wait_for_steps(folder, after=kill, process=process)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before the kill, {steps=}"
        words = command(resume_argv(folder))
    run_here(resume_argv(folder))
    assert digest(folder) == digest(uninterrupted)
    # what the report says repeats it is what a shell was given
    told = shlex.split(read_info(folder)["origin"]["command"])
    assert told == ["leanres", *map(str, train_argv(folder))]


def wait_for_steps(folder: Path, after: int, process: ForkedPopen) -> list[str]:
    """Until a checkpoint of more than `after` epochs is there."""
    for _ in range(6000):
        names = [p.name for p in saved(folder / CHECKPOINTS)]
        if (names and int(names[0]) > 13 * after) or process.poll() is not None:
            return names
        time.sleep(0.01)
    raise AssertionError("no checkpoint within a minute")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_between_two_steps_and_the_rest_equals_the_uninterrupted_run(
    uninterrupted, tmp_path, number, code, leanres
):
    """In this process; test_stop sends signals to others."""
    folder, late = tmp_path / "run", []

    def send() -> None:
        while not any(int(path.name) > 13 for path in saved(folder / CHECKPOINTS)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.signal(number, lambda *_: late.append(number))  # after the run's own end
    try:
        threading.Thread(target=send, daemon=True).start()
        outcome = leanres(*train_argv(folder))
    finally:
        signal.signal(number, before)
    assert (outcome.code, late) == (code, []), outcome.err
    assert "saved" in outcome.out
    assert f"leanres resume {folder}" in outcome.out
    run_here(resume_argv(folder))
    assert digest(folder) == digest(uninterrupted)


def test_a_stop_within_an_epoch_loses_no_step(tmp_path, digits, device, small):
    def upto(folder: Path, last: int | None) -> runs.Run:
        run = runs.create(folder, small, digits, device)

        def watch(state: TrainState) -> None:
            if state.step == last:
                stop.signal = signal.SIGTERM

        with Stop() as stop:
            list(fit.epochs(run, stop, watch))
        run.release()
        return run

    whole = upto(tmp_path / "whole", None)
    stopped = upto(tmp_path / "stopped", 8)
    assert saved(tmp_path / "stopped" / CHECKPOINTS)[0].name == "00000008"
    assert len(stopped.state.losses) == 2
    resumed = runs.reopen(tmp_path / "stopped", lambda _: digits, lambda _: device)
    with Stop() as stop:
        list(fit.epochs(resumed, stop))
    assert resumed.state.history == whole.state.history


def test_the_folder_holds_what_the_readme_says(uninterrupted):
    names = {p.name for p in uninterrupted.iterdir()}
    assert names == {
        ".lock",
        "run.json",
        "metrics.jsonl",
        "metrics.csv",
        "manifest.json",
        "images.parquet",
        "times.jsonl",
        "model.safetensors",
        "checkpoint",
        "predictions.parquet",
    }
    info = json.loads((uninterrupted / "run.json").read_text())
    assert info["recipe"]["epochs"] == 6
    assert info["data"]["train"] == 1337
    assert info["data"]["val"] == 100
    assert info["hardware"]["device"] == "cpu"
    assert info["test_reads"] == 1
    assert len(info["data"]["fingerprints"]["train"]) == 64
    rows = list(csv.DictReader((uninterrupted / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == list("123456")
    assert float(rows[-1]["images_per_s"]) > 0


def test_a_finished_run_can_be_extended_and_continues(uninterrupted, tmp_path, leanres):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    known = (folder / "run.json").read_bytes()
    again = leanres(*resume_argv(folder))
    assert again.code == 2
    assert "--epochs N extends it" in again.err
    assert leanres(*resume_argv(folder, "--epochs", "8", "--device", "cuda:99")).code == 2
    assert (folder / "run.json").read_bytes() == known  # a mistake changes nothing
    done = leanres(*resume_argv(folder, "--epochs", "8", "--json"))
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    before = (uninterrupted / "metrics.jsonl").read_text()
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    info = json.loads((folder / "run.json").read_text())
    assert info["recipe"]["epochs"] == 8
    assert info["test_reads"] == 2
    assert json.loads(done.out)["n"] == 360


def test_a_run_begun_for_val_reads_test_only_when_asked(tmp_path, leanres):
    folder = tmp_path / "run"
    assert leanres(*train_argv(folder, 2), "--measure", "val").code == 0

    def measured():
        info = json.loads((folder / "run.json").read_text())
        return info["result"]["split"], info["result"]["n"], info["test_reads"]

    assert measured() == ("val", 100, 0)
    again = leanres(*resume_argv(folder))
    assert again.code == 2
    assert "--epochs N extends it, --measure test reads test too" in again.err
    assert leanres(*resume_argv(folder, "--epochs", "3")).code == 0
    assert measured() == ("val", 100, 0)
    done = leanres(*resume_argv(folder, "--measure", "test", "--json"))
    assert json.loads(done.out)["n"] == 360
    assert measured() == ("test", 360, 1)
    assert leanres(*resume_argv(folder)).code == 2


def test_a_folder_in_use_is_left_alone(tmp_path, digits, device, small):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        runs.create(tmp_path / "run", small, digits, device)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]


def test_resuming_on_other_data_is_refused(tmp_path, digits, device, small):
    runs.create(tmp_path / "run", small, digits, device)
    other = replace(digits, train=digits.train.subset(range(1000)))
    with pytest.raises(UserError, match="trained on other data"):
        runs.reopen(tmp_path / "run", lambda _: other, lambda _: device)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path, digits, device, small):
    recipe = replace(small, epochs=5, optimizer="sgd", lr=1000.0, weight_decay=10.0)
    run = runs.create(tmp_path / "run", recipe, digits, device)
    with Stop() as stop, pytest.raises(UserError, match=r"nan|inf") as caught:
        list(fit.epochs(run, stop))
    run.release()
    assert "at step" in str(caught.value)
    again = runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device)
    assert all(p.isfinite().all() for p in again.state.model.parameters())


def test_without_a_test_split_val_is_measured_and_said(tmp_path, digits, device, small):
    dataset = Dataset("digits", digits.train, None, None)
    run = runs.create(tmp_path / "run", replace(small, epochs=1), dataset, device)
    with Stop() as stop:
        list(fit.epochs(run, stop))
    result = fit.finish(run)
    assert (result["split"], result["n"]) == ("val", 200)
    assert run.info["test_reads"] == 0


def test_while_choosing_the_test_split_is_not_read(tmp_path, digits, device, small, monkeypatch):
    read = []
    real = Predictor.logits_both

    def watched(predictor, images, tta):
        read.append(images)
        return real(predictor, images, tta)

    monkeypatch.setattr(Predictor, "logits_both", watched)
    run = runs.create(tmp_path / "run", replace(small, epochs=1), digits, device)
    with Stop() as stop:
        list(fit.epochs(run, stop))
    run.info["origin"]["measure"] = "val"
    assert fit.finish(run)["split"] == "val"
    assert run.info["test_reads"] == 0
    assert not any(images is digits.test.images for images in read)
    run.info["origin"]["measure"] = "test"
    fit.finish(run)
    assert any(images is digits.test.images for images in read)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": [["crop", {"padding": 40, "mode": "reflect"}]]}, "augment = .*Padding size"),
        ({"model": SpeedNetConfig((8, 8, 8, 8, 8, 8))}, "32 px do not fit this network"),
        ({"model": SpeedNetConfig((8, 8, 8, 8)), "batch_size": 1}, "leave a part of one image"),
    ],
)
def test_what_would_fail_in_the_first_step_fails_before_a_folder_is_made(
    tmp_path, digits, device, small, change, message
):
    recipe = replace(small, progressive_resizing=(), **change)
    with pytest.raises(UserError, match=message) as caught:
        runs.create(tmp_path / "run", recipe, digits, device)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_continues_with_the_network_it_started_with(
    tmp_path, digits, device, small, monkeypatch
):
    entry = replace(MODELS["speednet"], config=SpeedNetConfig((8, 16)))
    monkeypatch.setitem(MODELS, "speednet", entry)
    runs.create(tmp_path / "run", replace(small, model="speednet"), digits, device).release()
    later = replace(entry, config=SpeedNetConfig((8, 16), activation="silu"))
    monkeypatch.setitem(MODELS, "speednet", later)
    again = runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device)
    assert "speednet is another network by now" in again.notes[0]
    assert isinstance(again.state.model.stem_act, torch.nn.ReLU)
    assert again.config == entry.config


def test_images_in_another_order_are_said(tmp_path, digits, device, small):
    runs.create(tmp_path / "run", small, digits, device)
    mirror = replace(digits, train=digits.train.subset(range(len(digits.train) - 1, -1, -1)))
    again = runs.reopen(tmp_path / "run", lambda _: mirror, lambda _: device)
    assert "another order" in again.notes[0]


def test_a_run_made_in_python_is_resumed_by_the_command_line(tmp_path, digits, small, leanres):
    folder = tmp_path / "run"
    network = ResNetConfig((4,), (1,))  # where bfloat16 is emulated, the others take a while
    fit.fit(folder, replace(small, model=network, precision="bfloat16", epochs=1), digits)
    info = read_info(folder)
    assert info["hardware"]["precision"] == "bfloat16"
    done = leanres(*resume_argv(folder, "--epochs", "2"))
    assert done.code == 0, done.err
    assert "epoch   2/2" in done.out


def test_predictions_are_what_the_weights_say(uninterrupted):
    test = load_data("digits", size=16).test
    table = pq.read_table(uninterrupted / "predictions.parquet")
    probs = torch.tensor([table[f"p_{k}"].to_pylist() for k in range(10)]).T
    expected = load_predictor(uninterrupted).logits(test.images).softmax(1)
    assert torch.allclose(probs, expected, atol=1e-5)
    assert table["label"].to_pylist() == test.labels.tolist()
    accuracy = json.loads((uninterrupted / "run.json").read_text())["result"]["accuracy"]
    assert accuracy == pytest.approx((probs.argmax(1) == test.labels).double().mean())


def test_a_full_disk_at_the_start_leaves_nothing_behind(
    tmp_path, digits, device, small, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        runs.create(tmp_path / "run", small, digits, device)
    monkeypatch.undo()
    runs.create(tmp_path / "run", small, digits, device)


def test_a_full_disk_at_an_epochs_end_is_one_line(tmp_path, digits, device, small, monkeypatch):
    run = runs.create(tmp_path / "run", small, digits, device)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with Stop() as stop, pytest.raises(CheckpointError, match="No space left on device"):
        list(fit.epochs(run, stop))
    monkeypatch.undo()
    run.release()
    assert runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device).state.step == 0


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, digits, device, small):
    run = runs.create(tmp_path / "run", small, digits, device)
    words = command(resume_argv(run.folder, "--data", "digits"))
    refused = ForkedPopen(words, stderr=subprocess.PIPE, text=True)
    _, told = refused.communicate()
    assert refused.returncode == 2
    assert re.fullmatch(r".*is in use: another process.*\n", told)
    run.release()
    run_here(resume_argv(run.folder, "--data", "digits"))


def fails(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_fails_while_files_are_looked_at_ends_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "left").write_text("")
    with monkeypatch.context() as patched:
        for listing in ("listdir", "scandir"):  # pathlib's iterdir calls the latter from 3.13 on
            patched.setattr(os, listing, fails)
        for look in (layout.check_free, layout.clear):
            with pytest.raises(UserError, match="cannot be read: Input/output error"):
                look(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fails)
        with pytest.raises(UserError, match=r"cannot delete .*left"):
            layout.clear(tmp_path)
    assert layout.read_times(tmp_path) == []
    (tmp_path / layout.TIMES).write_text("")
    monkeypatch.setattr(layout, "read_file", fails)  # going on without them would lose them
    with pytest.raises(UserError, match=r"times\.jsonl cannot be read"):
        layout.read_times(tmp_path)
