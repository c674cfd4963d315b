"""Python on a par with the command line: fit, resume, predict and compare as users call them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import leanres
from leanres.errors import UserError
from leanres.models.speednet import SpeedNetConfig
from leanres.training.device import CPU

SMALL = leanres.Recipe(SpeedNetConfig((8, 16)), 2, 200, accumulate=1, augment=(), val=200)
DEVICE = CPU("cpu", "float32", compiled=False)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "run"
    leanres.fit(folder, SMALL, digits, DEVICE, progress=False)
    return folder


# --- fit and resume -------------------------------------------------------------------------------


def test_fit_prints_what_train_prints_and_calls_back(digits, tmp_path, capsys):
    rows = []
    result = leanres.fit(tmp_path / "a", SMALL, digits, DEVICE, on_epoch=rows.append, report=True)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("custom speednet (0.01 M params) on 1,237 images + 200 val of digits")
    assert [line.split()[:2] for line in out if line.startswith("epoch")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["val_accuracy"] == pytest.approx(float(out[-1].split()[4]) / 100, abs=1e-4)
    assert (tmp_path / "a" / "report.html").exists()
    assert result == json.loads((tmp_path / "a" / "run.json").read_text())["result"]


def test_silence_is_silent(digits, tmp_path, capsys):
    leanres.fit(tmp_path / "a", replace(SMALL, epochs=1), digits, DEVICE, progress=False)
    assert capsys.readouterr() == ("", "")


def test_exist_ok_returns_a_finished_run_and_continues_a_stopped_one(digits, tmp_path):
    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    whole = leanres.fit(tmp_path / "whole", SMALL, digits, DEVICE, progress=False)
    with pytest.raises(KeyboardInterrupt):
        leanres.fit(tmp_path / "a", SMALL, digits, DEVICE, progress=False, on_epoch=stop)
    again = {"progress": False, "exist_ok": True}
    continued = leanres.fit(tmp_path / "a", SMALL, digits, DEVICE, **again)
    assert continued["weights"] == whole["weights"]
    reads = json.loads((tmp_path / "a" / "run.json").read_text())["test_reads"]
    assert leanres.fit(tmp_path / "a", SMALL, digits, DEVICE, **again) == continued
    assert json.loads((tmp_path / "a" / "run.json").read_text())["test_reads"] == reads == 1
    fresh = leanres.fit(tmp_path / "b", SMALL, digits, DEVICE, **again)
    assert fresh["weights"] == whole["weights"]


def test_exist_ok_takes_no_run_of_another_recipe(digits, run):
    with pytest.raises(UserError, match="holds a run of another recipe"):
        leanres.fit(run, replace(SMALL, lr=0.1), digits, DEVICE, exist_ok=True)
    with pytest.raises(UserError, match="exists already"):
        leanres.fit(run, SMALL, digits, DEVICE)


def test_resume_extends_a_finished_run(digits, tmp_path):
    leanres.fit(tmp_path / "a", SMALL, digits, DEVICE, progress=False)
    rows = []
    leanres.resume(tmp_path / "a", 3, data=digits, device=DEVICE, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [3]


@pytest.mark.parametrize("hold_out_val", [True, False])
def test_data_without_test_and_val_images_gives_up_a_tenth(digits, tmp_path, capsys, hold_out_val):
    data, recipe = replace(digits, test=None), replace(SMALL, val=0, epochs=1)
    more = {"hold_out_val": hold_out_val}
    result = leanres.fit(tmp_path / "a", recipe, data, DEVICE, **more)
    held_out = len(data.with_val(0.1).val)
    assert result.get("n") == (held_out if hold_out_val else None)
    told = f"no test and no val images: {held_out} of 1,437 are held out as val (val = 0.1;"
    assert (told in capsys.readouterr().out) == hold_out_val
    again = leanres.fit(tmp_path / "a", recipe, data, DEVICE, exist_ok=True, **more)
    assert again == result


# --- predict --------------------------------------------------------------------------------------


def test_paths_pictures_and_arrays_are_answered_alike(run, digits, tmp_path):
    images = digits.test.images[:5]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    asked = {
        "folder": tmp_path,
        "paths": [tmp_path / f"{i}.png" for i in range(5)],
        "pictures": pictures,
        "NCHW": images.numpy(),
        "NHWC": images.permute(0, 2, 3, 1).numpy(),
        "tensor": images,
        "floats": images.float() / 255,
    }
    answers = {name: leanres.predict(run, given, top=10) for name, given in asked.items()}
    for name, found in answers.items():
        assert [p.classes for p in found] == [p.classes for p in answers["folder"]], name
        for own, theirs in zip(found, answers["folder"], strict=True):
            assert own.probs == pytest.approx(theirs.probs, abs=1e-5), name
    assert [p.id for p in answers["pictures"]] == [p.id for p in answers["NCHW"]] == list("01234")
    assert [p.id for p in answers["folder"]] == [f"{i}.png" for i in range(5)]


def test_one_image_is_one_answer(run, digits, tmp_path):
    pixels = digits.test.images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answers = [
        leanres.predict(run, one)
        for one in (str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), pixels, pixels[..., 0])
    ]
    assert [len(found) for found in answers] == [1, 1, 1, 1]
    assert len({found[0].classes[0] for found in answers}) == 1


def test_pictures_of_any_size_and_mode_are_prepared_as_files_are(run, tmp_path):
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(256, size=(40, 90, 4), dtype=np.uint8))
    wide.save(tmp_path / "wide.png")
    own, theirs = leanres.predict(run, [wide])[0], leanres.predict(run, tmp_path / "wide.png")[0]
    assert own.probs == pytest.approx(theirs.probs, abs=1e-6)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (
            [Image.new("L", (8, 8)), "x.png"],
            "images of type Image, str: give only paths, only pictures",
        ),
        (
            [np.zeros((8, 8))],
            "images of type ndarray: give only paths, only pictures of Pillow's, or one array",
        ),
        (np.zeros((2, 3, 4, 5, 6)), r"an array of shape \(2, 3, 4, 5, 6\)"),
        (np.zeros((0, 8, 8)), "an array of shape"),
        (np.full((1, 8, 8, 3), 300), "values from 300 to 300"),
        ("nowhere.png", "nowhere.png does not exist"),
        (np.full((1, 8, 8, 3), np.nan), "^array: values from nan to nan; give 0 to 255"),
        (np.full((1, 8, 8, 3), 1j), "^array of type complex128: give uint8"),
        (torch.eye(8).to_sparse(), "is no array"),
        ("", "an empty path"),
        ([""], "an empty path"),
        ([3], "images of type int"),
        (3, "images of type int"),
        (None, "images of type NoneType: give only paths"),
    ],
)
def test_what_holds_no_images_is_refused(run, images, problem):
    with pytest.raises(UserError, match=problem):
        leanres.predict(run, images)


# --- compare --------------------------------------------------------------------------------------


def test_compare_pairs_the_seeds(digits, tmp_path, capsys):
    recipes = {"slow": replace(SMALL, lr=1e-4), "usual": SMALL}
    rows = leanres.compare(recipes, digits, tmp_path / "c", seeds=(0, 1), device=DEVICE)
    slow, usual = rows
    assert [row["variant"] for row in rows] == ["slow", "usual"]
    differences = [usual["accuracies"][seed] - slow["accuracies"][seed] for seed in (0, 1)]
    assert usual["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert usual["mean"] > slow["mean"]
    assert capsys.readouterr().out.count("finished") == 4
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*/model.safetensors")}
    again = leanres.compare(recipes, digits, tmp_path / "c", seeds=(0, 1), device=DEVICE)
    assert [row["accuracies"] for row in again] == [row["accuracies"] for row in rows]
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.parametrize(
    ("recipes", "seeds", "problem"),
    [
        ({}, (0,), "nothing to compare"),
        ({"a": SMALL}, (), "nothing to compare"),
        ({"a": replace(SMALL, val=0)}, (0,), "measure val: the data has no such split"),
    ],
)
def test_a_comparison_of_nothing_is_refused(digits, tmp_path, recipes, seeds, problem):
    with pytest.raises(UserError, match=problem):
        leanres.compare(recipes, digits, tmp_path / "c", seeds, device=DEVICE)


# --- names ----------------------------------------------------------------------------------------


def test_figures_are_reached_by_their_name_and_torch_is_not_imported_early():
    code = (
        "import sys, leanres; assert 'torch' not in sys.modules;"
        "print(leanres.report.figures.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["leanres.report.figures"], done.stderr


def test_every_public_name_is_there():
    for name in leanres.__all__:
        assert getattr(leanres, name) is not None
    with pytest.raises(AttributeError):
        _ = leanres.no_such_name
    assert torch.nn  # what a room needs is imported by it alone
