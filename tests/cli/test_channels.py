"""Grey and RGBA images from a folder: train, resume, evaluate, predict, export, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import leanres as package
from leanres.data.sources import load_data, locate
from leanres.errors import UserError
from leanres.runs.fit import complete
from leanres.runs.predictor import load_predictor
from leanres.runs.run import create
from leanres.runs.run_json import read_info
from leanres.runs.weights import WEIGHTS
from leanres.training.recipes import load_recipe

SETTINGS = {
    "model": {"family": "speednet", "widths": [8, 16]},
    "batch_size": 16,
    "accumulate": 1,
    "epochs": 2,
    "val": 0.2,
    "augment": ["alternating_flip", "rand_augment", "color_jitter", "cutout"],
    "mix": ["mixup"],
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Forty RGBA images: cats are bright on the left, dogs on the right."""
    folder, rng = tmp_path_factory.mktemp("rgba") / "photos", np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 120, (16, 16, 4), dtype=np.uint8)
        pixels[:, slice(0, 8) if i % 2 else slice(8, 16)] += 100
        place = folder / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def words(photos) -> list[object]:
    """The arguments of `train` but for --channels and --out."""
    from leanres.io import toml_value

    changes = [f"{key}={toml_value(value)}" for key, value in SETTINGS.items()]
    settings = [word for text in changes for word in ("--set", text)]
    return ["--data", photos, "--size", 16, "--tta", "flip", "--device", "cpu", *settings]


@pytest.mark.parametrize("channels", [1, 4])
def test_every_command_takes_images_of_these_channels(leanres, photos, words, tmp_path, channels):
    run, file = tmp_path / "run", tmp_path / "net.safetensors"
    done = leanres("train", *words, "--channels", channels, "--out", run)
    assert done.code == 0, done.err
    info = read_info(run)
    assert info["origin"]["channels"] == channels
    assert info["network"]["in_channels"] == len(info["preprocess"]["mean"]) == channels
    assert "data:image/png" in (run / "report.html").read_text()
    measured = leanres("evaluate", run, "--json", "--tta", "flip")
    assert json.loads(measured.out)["accuracy"] == info["result"]["accuracy"]
    exported = leanres("export", run, tmp_path / "net.onnx")
    assert " 100.00 % keep their class" in exported.out
    assert leanres("export", run, file, "--card").code == 0
    kind = {1: "grey", 4: "RGBA"}[channels]
    assert f"| input | {kind} of 16x16 px" in file.with_suffix(".md").read_text()
    for target in (run, file):
        found = leanres("predict", target, photos / "cat", "--json")
        assert len(found.out.splitlines()) == 20


@pytest.mark.parametrize("channels", [1, 4])
def test_a_resumed_run_decodes_the_images_as_before(photos, tmp_path, device, channels):
    recipe, where = load_recipe("speed", SETTINGS), {"size": 16, "channels": channels}
    data = load_data(str(photos), **where)
    for name, stop in (("whole", None), ("parts", 1)):
        run = create(tmp_path / name, recipe, data, device, locate(str(photos), **where))
        complete(run, until_epoch=stop)
    package.resume(tmp_path / "parts", device=device)
    whole, parts = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_other_channels_than_the_networks_are_named_in_one_line(leanres, mistake, words, tmp_path):
    grey, out = [*words, "--no-report", "--channels", 1], ("--out", tmp_path / "refused")
    assert leanres("train", *grey, "--out", tmp_path / "run").code == 0
    changed = leanres("data", "digits", "--size", 16, "--channels", 1, "--out", tmp_path)
    assert "note: images are converted from RGB to grey" in changed.err
    found = leanres("train", *words, "--set", f"teacher={tmp_path / 'run'}", *out)
    mistake(found, "in images of 1x16 px, the data has", "in images of 3x16 px")
    found = leanres("train", *words, "--channels", 2, *out)
    mistake(found, "2 channels; give 1 (grey), 3 (RGB) or 4 (RGBA)")
    found = leanres("train", *grey, "--set", "mean=[0.5, 0.5, 0.5]", *out)
    mistake(found, "mean and std are of 3 and 1 channels, the images have 1")
    with pytest.raises(UserError, match="images of 3x16x16: the network takes 1x16x16"):
        load_predictor(tmp_path / "run", "cpu").logits(torch.zeros(1, 3, 16, 16).byte())


def test_data_and_summary_count_the_channels(leanres, photos, tmp_path):
    told = leanres("data", photos, "--channels", 1, "--size", 16, "--out", tmp_path)
    assert told.code == 0, told.err
    assert "16x16 px, grey, mean 0." in told.out
    params = [
        json.loads(leanres("summary", "resnet20", "--channels", c, "--json").out)["params"]
        for c in (3, 1)
    ]
    assert params[0] - params[1] == 2 * 16 * 9
