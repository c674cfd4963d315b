"""images.parquet: after a training, no image of a folder that changed is measured wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import leanres
from leanres.cli import app
from leanres.errors import UserError
from leanres.models.resnet import ResNetConfig
from leanres.runs.images import read_images
from leanres.training.recipe import Recipe

SMALL = Recipe(
    model=ResNetConfig((8,), (1,), init="kaiming"),
    epochs=2,
    batch_size=8,
    accumulate=1,
    augment=(),
    optimizer="sgd",
    lr=0.1,
    val=0.2,
)


def draw(folder: Path, numbers: range, seed: int = 0) -> None:
    """Write random images, one in two a cat."""
    rng = np.random.default_rng(seed)
    for i in numbers:
        place = folder / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "photos", range(60))
    return tmp_path / "photos"


def fit(photos: Path, run: Path) -> dict:
    from leanres.data.sources import locate
    from leanres.runs.fit import complete
    from leanres.runs.run import create
    from leanres.training.device import detect

    data = leanres.load_data(str(photos), size=8)
    return complete(create(run, SMALL, data, detect("cpu"), locate(str(photos), size=8)))


def evaluate(run: Path, *words: str) -> tuple[dict, str]:
    done = CliRunner().invoke(app, ["evaluate", str(run), "--tta", "none", "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_a_grown_folder_is_measured_on_images_that_were_not_trained_on(photos, tmp_path):
    before = fit(photos, tmp_path / "run")
    same, notes = evaluate(tmp_path / "run")
    assert (same["n"], same["accuracy"]) == (before["n"], before["accuracy"])
    assert "not the images" not in notes
    draw(photos, range(100, 130), seed=1)
    grown, notes = evaluate(tmp_path / "run")
    assert "60 of those 60 are here, and 30 others" in notes
    assert grown["n"] > before["n"]  # the new test images too
    # Images of train that are put into a test folder are found out by their pixels.
    moved = tmp_path / "moved"
    draw(moved / "train", range(200, 220), seed=2)
    draw(moved / "test", range(60))
    measured, notes = evaluate(tmp_path / "run", "--data", str(moved))
    assert measured["n"] == before["n"]
    assert measured["accuracy"] == before["accuracy"]
    assert f"{60 - before['n']} of 60 test images left out" in notes


def test_a_run_on_a_grown_folder_goes_on_bit_for_bit_with_its_own_images(photos, tmp_path):
    fit(photos, tmp_path / "a")
    fit(photos, tmp_path / "b")
    whole = leanres.resume(tmp_path / "a", epochs=3)
    draw(photos, range(100, 130), seed=1)
    (photos / "owl").mkdir()
    (photos / "dog" / "0.png").rename(photos / "dog" / "renamed.png")
    draw(photos / "owl" / "x", range(2), seed=3)
    for path in [*(photos / "owl" / "x").rglob("*.png")]:
        path.rename(photos / "owl" / path.name)
    runner = CliRunner().invoke(app, ["resume", str(tmp_path / "b"), "--epochs", "3"])
    assert runner.exit_code == 0, runner.output
    assert "32 images came since the run began: left out" in runner.stderr
    grown = leanres.runs.run_json.read_info(tmp_path / "b")["result"]
    assert grown["weights"] == whole["weights"]
    (photos / "dog" / "2.png").unlink()
    missing = r"trained on other data \(1 of its 60 images are missing, 32 are new\): give the same"
    with pytest.raises(UserError, match=missing):
        leanres.resume(tmp_path / "b", epochs=4)


def test_other_labels_for_the_same_images_are_said_to_be_that(photos, tmp_path):
    fit(photos, tmp_path / "run")
    (photos / "dog" / "0.png").rename(photos / "cat" / "0.png")
    with pytest.raises(
        UserError, match=r"\(the same images, but other labels, classes or splits\)"
    ):
        leanres.resume(tmp_path / "run", epochs=3)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--data", str(photos)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "it was trained on other data (the same images, but other labels" in page


def test_the_table_names_every_image_and_its_split(photos, tmp_path):
    fit(photos, tmp_path / "run")
    data = leanres.load_data(str(photos), size=8).with_val(0.2)
    images = read_images(tmp_path / "run")
    assert [len(images.of(s)) for s in ("train", "val", "test")] == [
        len(data.train),
        len(data.val),
        len(data.test),
    ]
    assert not np.isin(images.of("train", "val"), images.of("test")).any()


def test_a_run_of_arrays_is_continued_evaluated_and_reported_without_naming_them(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (60, 8, 8, 3), generator=rng, dtype=torch.uint8)
    data = leanres.Dataset.from_arrays(x, torch.arange(60) % 2, classes=("a", "b"))
    first = leanres.fit(tmp_path / "run", SMALL, data)
    assert leanres.resume(tmp_path / "run", epochs=3)["n"] == first["n"]
    assert evaluate(tmp_path / "run")[0]["n"] == first["n"]
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output


def draw_greys(folder: Path, numbers: range, most: int) -> None:
    """Write random 16-bit images with values up to `most`, one in two a cat."""
    rng = np.random.default_rng(numbers.start)
    for i in numbers:
        place = folder / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        grey = rng.integers(0, most, (8, 8)).astype(np.uint16)
        grey[0, 0] = most
        Image.fromarray(grey).save(place / f"{i}.png")


def test_greys_are_scaled_as_in_training_however_bright_those_are_that_come_later(
    tmp_path, monkeypatch
):
    """A brighter image changes the white of the folder, and so every pixel, but not the run's."""
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    folder, run = tmp_path / "scans", tmp_path / "run"
    draw_greys(folder, range(60), 4095)
    assert fit(folder, run)["n"] > 0
    before, notes = evaluate(run)
    assert "left out" not in notes
    draw_greys(folder, range(60, 61), 65535)
    for words in ((), ("--data", str(folder)), ("--data", f"folder:{folder}")):
        after, notes = evaluate(run, *words)
        assert "60 of those 60 are here, and 1 others" in notes
        assert "clipped, in 1 of them" in notes
        assert before["n"] <= after["n"] <= before["n"] + 1
    words = ["resume", str(run), "--epochs", "3", "--no-report"]
    resumed = CliRunner().invoke(app, words)
    assert resumed.exit_code == 0, resumed.output
    assert "1 images came since the run began: left out" in resumed.stderr
    with pytest.raises(UserError, match=r"load_data\(\.\.\., whites={'integer': 4095"):
        leanres.evaluate(run, leanres.load_data(str(folder), size=8))
    whites = leanres.load_predictor(run).preprocess.whites
    assert whites == {"integer": 4095}
    data = leanres.load_data(str(folder), size=8, whites=whites)
    assert leanres.evaluate(run, data)["n"] == after["n"]
