"""`leanres data`."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def test_data_describes_the_digits_and_draws_two_pictures(leanres, tmp_path):
    done = leanres("data", "digits", "--out", tmp_path)
    assert done.code == 0
    assert "1,437" in done.out
    for name in ("samples.png", "augmented.png"):
        pixels = np.asarray(Image.open(tmp_path / name))
        assert pixels.std() > 10  # something is drawn
    facts = json.loads(leanres("data", "digits", "--out", tmp_path, "--json").out)
    assert facts["splits"]["test"]["num_images"] == 360
    assert facts["grids"] == [str(tmp_path / "samples.png"), str(tmp_path / "augmented.png")]


def test_the_size_holds_for_the_digits_too(leanres, tmp_path):
    facts = json.loads(leanres("data", "digits", "--size", 16, "--out", tmp_path, "--json").out)
    assert facts["splits"]["train"]["size"] == [16, 16]


def test_data_gives_the_known_statistics(leanres, tmp_path, digits):
    facts = json.loads(leanres("data", "digits", "--out", tmp_path, "--json").out)
    pixels = digits.train.images.numpy() / 255
    np.testing.assert_allclose(facts["splits"]["train"]["mean"], pixels.mean((0, 2, 3)))
    mean = " ".join(f"{value:.4f}" for value in pixels.mean((0, 2, 3)))
    out = leanres("data", "digits", "--out", tmp_path).out
    assert f"train: 32x32 px, RGB, mean {mean}, std " in out
    assert "duplicates of test that are in train too: 0" in out


def test_a_place_where_no_grid_can_be_written_is_one_line(leanres, mistake, tmp_path):
    (tmp_path / "file").write_text("x")
    mistake(leanres("data", "digits", "--out", tmp_path / "file"), "cannot read or write", "file")
