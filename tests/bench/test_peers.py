"""Peers do the work that they are asked for; scripts are read as they print."""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from leanres.bench.peers import (
    PEERS,
    PillowImages,
    Work,
    check_script,
    loader,
    missing,
    run_peer,
    run_script,
)
from leanres.bench.pillow import STEPS, perspective
from leanres.data.split import channel_stats
from leanres.errors import UserError

WORK = Work(model="resnet20", data="digits", images=64, batch_size=16, workers=0, device="cpu")


@pytest.fixture(autouse=True)
def _one_thread_in_the_peers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# Lightning and fastai are the user's to install: fastai alone brings torchvision and spaCy.
@pytest.mark.parametrize("name", [name for name in PEERS if not missing(name)])
def test_every_peer_that_is_installed_trains(name):
    seconds = run_peer(name, WORK)
    assert len(seconds) == WORK.epochs
    assert all(s > 0 for s in seconds)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert missing("lightning") == "lightning"
    with pytest.raises(UserError, match="no peer 'keras'"):
        missing("keras")


def test_a_peers_image_is_pillows_crop_of_the_padded_one(digits):
    split = digits.train.subset(range(4))
    images = PillowImages(split, WORK.steps())
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in channel_stats(split))
    padded = np.zeros((40, 40, 3), np.uint8)
    padded[4:36, 4:36] = split.images[2].permute(1, 2, 0).numpy()
    found = set()
    for _ in range(40):
        got, label = images[2]
        pixels = ((got * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        fits = [
            (x, y, mirrored)
            for x in range(9)
            for y in range(9)
            for mirrored in (False, True)
            if (_mirror(padded[y : y + 32, x : x + 32], mirrored) == pixels).all()
        ]
        assert fits
        assert label == int(split.labels[2])
        found |= set(fits)
    assert len({f[2] for f in found}) == 2  # both ways round
    assert len(found) > 10


@pytest.mark.parametrize("name", list(STEPS))
def test_a_peers_step_is_ours_by_name_and_settings(name):
    ours, theirs = (inspect.signature(table[name]).parameters for table in (AUGMENTS, STEPS))
    settings = {key: own.default for key, own in theirs.items() if key != "image"}
    assert settings == {key: ours[key].default for key in settings}


def test_a_perspective_is_seen_as_often_and_as_far_as_ours(digits):
    image = Image.fromarray(np.full((32, 32, 3), 255, np.uint8))
    random.seed(3)
    shares = np.array([np.asarray(perspective(image)).mean() / 255 for _ in range(2000)])
    white = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    ours = AUGMENTS["perspective"](white, Draw(generator(3)))
    ours = ours.float().mean((1, 2, 3)).numpy() / 255
    for found in (shares, ours):
        assert 0.45 < (found == 1).mean() < 0.55
    assert abs(shares.mean() - ours.mean()) < 0.02
    assert abs(shares.min() - ours.min()) < 0.1


def test_an_unknown_step_is_said_before_anything_trains(leanres):
    done = leanres("bench", "peers", "pytorch", "--data", "digits", "--augment", "crop,flop")
    assert done.code == 2
    assert "did you mean 'flip'" in done.err


def _mirror(pixels, mirrored):
    return np.asarray(Image.fromarray(pixels))[:, ::-1] if mirrored else pixels


def test_a_loader_gives_whole_batches():
    split = WORK.split()
    batches = list(loader(WORK, split))
    assert [tuple(images.shape) for images, _ in batches] == [(16, 3, 32, 32)] * 4


AIRBENCH = """
|  run   | epoch | train_acc | val_acc | tta_val_acc | time_seconds |
|   0    |   8   |  0.9871   | 0.9321  |             |   2.5        |
|   0    |  eval |  0.9871   | 0.9321  |   0.9402    |   2.5901     |
|   1    |  eval |  0.9871   | 0.9301  |   0.9398    |   2.6099     |
"""


def test_fewer_images_than_a_batch_are_said_before_anything_trains(leanres):
    words = ["bench", "peers", "leanres,pytorch", "--data", "digits", "--images", "64"]
    done = leanres(*words, "--batch-size", "100")
    assert done.code == 2
    assert "64 images make no batch of 100" in done.err


def test_an_airbench_table_is_read(tmp_path):
    script = tmp_path / "record.py"
    script.write_text(f"print({AIRBENCH!r})")
    found = run_script(script)
    assert found["n"] == 2
    assert found["accuracy"]["mean"] == pytest.approx(0.94)
    assert found["seconds"] == {"mean": pytest.approx(2.6), "sd": pytest.approx(0.014, rel=0.02)}


def test_a_scripts_own_words_are_read_by_a_pattern(tmp_path):
    script = tmp_path / "record.py"
    script.write_text("print('reached 93.5 % after 12 s')")
    found = run_script(script, r"reached (?P<accuracy>\S+) % after (?P<seconds>\S+) s")
    assert (found["accuracy"]["mean"], found["seconds"]["mean"]) == (93.5, 12.0)
    assert found["accuracy"]["sd"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("print('nothing')", "printed nothing that matches"),
        ("raise ValueError('no GPU here')", "ended with 1: ValueError: no GPU here"),
    ],
)
def test_a_script_that_fails_is_one_line(tmp_path, content, message):
    script = tmp_path / "record.py"
    script.write_text(content)
    with pytest.raises(UserError, match=message):
        run_script(script)


def test_a_script_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no script"):
        run_script(tmp_path / "record.py")


@pytest.mark.parametrize("pattern", ["(", "(?P<accuracy>.)"])
def test_a_pattern_that_cannot_work_is_one_line(pattern):
    with pytest.raises(UserError, match="--pattern"):
        check_script(Path(__file__), pattern)


def test_the_command_line_races_peers(leanres, tmp_path, monkeypatch):
    took, asked = {"leanres": [3.0, 2.0], "pytorch": [7.0, 6.0]}, []
    monkeypatch.setattr(
        "leanres.bench.peers.run_peer", lambda name, work: asked.append(work) or took[name]
    )
    script = tmp_path / "record.py"
    script.write_text(f"print({AIRBENCH!r})")
    words = ["bench", "peers", "leanres,pytorch", "--data", "digits", "--images", "64"]
    words += ["--batch-size", "16", "--workers", "0", "--device", "cpu"]
    words += ["--augment", "auto_augment,crop,flip,perspective"]
    done = leanres(*words, "--script", script, "--out", tmp_path / "peers.json")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert ["leanres", "2.0", "3.0", "1.00"] in rows
    assert ["pytorch", "6.0", "7.0", "3.00"] in rows
    steps = ["auto_augment", "crop", "flip", "perspective"]
    work = Work("resnet20", "digits", None, 64, 16, 2, 0, "cpu", steps)
    assert asked == [work, work]
    assert "n = 2, accuracy 0.94, 2.6 s a training" in done.out
    report = json.loads((tmp_path / "peers.json").read_text())
    assert {"hardware", "commit", "work"} <= set(report)
    assert report["epoch_seconds"] == took


def test_a_script_that_cannot_run_is_told_before_any_peer_runs(leanres, tmp_path, monkeypatch):
    monkeypatch.setattr("leanres.bench.peers.run_peer", None)
    script = tmp_path / "record.py"
    done = leanres("bench", "peers", "leanres", "--data", "digits", "--script", script)
    assert (done.code, f"no script {script}" in done.err) == (2, True)


def test_a_peer_that_is_asked_for_and_missing_is_the_users_mistake(leanres, monkeypatch):
    monkeypatch.setattr("leanres.bench.peers.missing", lambda name: "lightning")
    done = leanres("bench", "peers", "lightning", "--data", "digits")
    assert done.code == 2
    assert "pip install lightning" in done.err
