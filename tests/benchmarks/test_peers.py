"""Peers do the work that they are asked for; scripts are read as they print."""

from __future__ import annotations

import inspect
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from leanres.data.split import channel_stats
from leanres.errors import UserError
from peers import PillowImages, Work, chosen_peers, loader, main, run_peer, run_script
from pillow_augment import STEPS, perspective

WORK = Work(model="resnet20", data="digits", images=64, batch_size=16, workers=0, device="cpu")


@pytest.fixture(autouse=True)
def _one_thread_in_the_peers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# Lightning and fastai are the user's to install: fastai alone brings torchvision and spaCy.
@pytest.mark.parametrize("name", chosen_peers("all"))
def test_every_peer_that_is_installed_trains(name):
    seconds = run_peer(name, WORK)
    assert len(seconds) == WORK.epochs
    assert all(s > 0 for s in seconds)


def test_all_peers_are_those_that_are_installed_and_the_others_are_noted(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert chosen_peers("all") == ["leanres", "pytorch"]
    notes = capsys.readouterr().err.splitlines()
    assert notes[0] == "note: lightning is not installed: pip install lightning"
    with pytest.raises(UserError, match="lightning is not installed: pip install lightning"):
        chosen_peers("pytorch,lightning")
    with pytest.raises(UserError, match="no peer 'keras'"):
        chosen_peers("keras")


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--augment", "crop,flop"), "did you mean 'flip'"),
        (("--images", "64", "--batch-size", "100"), "64 images make no batch of 100"),
        (("--model", "resnet21"), "no model 'resnet21'"),
        (("--script", "no/record.py"), "no script no/record.py"),
        (("--script", __file__, "--pattern", "("), "--pattern '('"),
        (("--script", __file__, "--pattern", "(?P<accuracy>.)"), "name its groups"),
    ],
)
def test_a_mistake_is_one_line_before_anything_trains(capsys, monkeypatch, words, said):
    monkeypatch.setattr("peers.run_peer", None)
    with pytest.raises(SystemExit) as end:
        main(["pytorch", "--data", "digits", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert (end.value.code, line.startswith("peers.py: "), said in line) == (2, True, True)


@pytest.mark.parametrize("option", ["--workers=-1", "--epochs=0", "--images=many"])
def test_a_number_out_of_range_is_named(capsys, option):
    with pytest.raises(SystemExit) as end:
        main([option])
    assert end.value.code == 2
    assert f"argument {option.partition('=')[0]}: " in capsys.readouterr().err


def test_the_program_races_peers(capsys, tmp_path, monkeypatch):
    took, asked = {"leanres": [3.0, 2.0], "pytorch": [7.0, 6.0]}, []
    monkeypatch.setattr("peers.run_peer", lambda name, work: asked.append(work) or took[name])
    script = tmp_path / "record.py"
    script.write_text(f"print({AIRBENCH!r})")
    words = ["leanres,pytorch", "--data", "digits", "--images", "64"]
    words += ["--batch-size", "16", "--workers", "0", "--device", "cpu"]
    words += ["--augment", "auto_augment,crop,flip,perspective"]
    main([*words, "--script", str(script), "--out", str(tmp_path / "peers.json")])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["leanres", "2.0", "3.0", "1.00"] in rows
    assert ["pytorch", "6.0", "7.0", "3.00"] in rows
    steps = ["auto_augment", "crop", "flip", "perspective"]
    work = Work("resnet20", "digits", 64, 16, 2, 0, "cpu", steps)
    assert asked == [work, work]
    assert f"{script}: n = 2, accuracy 0.94, 2.6 s a training" in out
    report = json.loads((tmp_path / "peers.json").read_text())
    assert {"hardware", "commit", "work"} <= set(report)
    assert report["epoch_seconds"] == took
    assert report["scripts"][str(script)]["n"] == 2
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == report | {"scripts": {}}
