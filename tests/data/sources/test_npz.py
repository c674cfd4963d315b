"""Arrays of an .npz are found by their names, with splits, class names and channels."""

from __future__ import annotations

import layouts
import numpy as np
import pytest
from layouts import channels_last, check, labels, pixels

from leanres.data.sources import load_data
from leanres.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")

NUMBERS = tuple("0123456789")


@pytest.mark.parametrize(
    "names",
    [
        "train_images train_labels test_images test_labels",
        "x_train y_train x_test y_test",
        "X_train Y_train X_test Y_test",
        "train_data train_target test_data test_target",
        "x_training y_training x_testing y_testing",
    ],
)
def test_an_npz_is_read_by_the_names_of_its_arrays(tmp_path, names):
    data = load_data(layouts.write_npz(tmp_path / "mine.npz", names))
    check(data, pixels(0), pixels(1, 10), NUMBERS)
    assert data.notes[:2] == (
        f"{tmp_path / 'mine.npz'}: read as npz",
        f"arrays {names.replace(' ', ', ')}",
    )
    assert data.grows


@pytest.mark.parametrize("names", ["images labels", "data target", "x y", "X y", "arr_0 arr_1"])
def test_an_npz_without_splits_holds_out_test_by_content(tmp_path, names):
    data = load_data(layouts.write_npz(tmp_path / "mine.npz", names))
    both = np.concatenate([channels_last(data.train), channels_last(data.test)])
    assert sorted(map(bytes, both)) == sorted(map(bytes, pixels(0)))
    assert any("are held out" in note for note in data.notes)


def test_an_npz_may_have_val_class_names_grey_floats_and_another_size(tmp_path):
    grey = pixels(0, 20, (28, 28))
    parts = {f"{part}_images": grey / 255 for part in ("train", "val", "test")}
    parts |= {f"{part}_labels": labels() % 2 for part in ("train", "val", "test")}
    np.savez_compressed(tmp_path / "mine.npz", class_names=["ham", "spam"], **parts)
    data = load_data(tmp_path / "mine.npz")
    assert data.train.classes == data.val.classes == ("ham", "spam")
    np.testing.assert_array_equal(channels_last(data.val), grey[..., None].repeat(3, 3))
    assert load_data(tmp_path / "mine.npz", size=16).test.images.shape == (20, 3, 16, 16)
    assert load_data(tmp_path / "mine.npz").train.images.shape == (20, 3, 28, 28)


def test_an_npz_of_rgba_keeps_its_alpha_where_four_channels_are_asked_for(tmp_path):
    rgba = np.concatenate([pixels(0), pixels(1)[..., :1]], 3)
    np.savez(tmp_path / "mine.npz", x_train=rgba, y_train=labels(), x_test=rgba, y_test=labels())
    kept = load_data(tmp_path / "mine.npz", channels=4).train
    np.testing.assert_array_equal(channels_last(kept), rgba)
    alpha = rgba[..., 3:] / 255
    over_white = (alpha * rgba[..., :3] + 255 * (1 - alpha)).round()
    flat = channels_last(load_data(tmp_path / "mine.npz").train).astype(int)
    assert np.abs(flat - over_white).max() <= 1


def test_objects_beside_the_images_of_an_npz_are_not_read(tmp_path):
    others = np.array([{}], dtype=object)
    np.savez(tmp_path / "mine.npz", x=pixels(0), y=labels(), about=others)
    assert len(load_data(tmp_path / "mine.npz").train) > 0


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"foo": [1], "bar": [2]}, "has arrays foo, bar; give train_images"),
        ({"x_train": pixels(0)}, "has arrays x_train; give"),
        ({"images": pixels(0), "x": pixels(0), "y": labels()}, "images and x are both images"),
        (
            {"images": pixels(0), "labels": labels(), "x_test": pixels(0), "y_test": labels()},
            "give",
        ),
        ({"x": pixels(0), "y": labels(19)}, "int64 of shape"),
        ({"x": pixels(0), "y": np.zeros((20, 14), int)}, "whole numbers or names, one per image"),
        ({"x": pixels(0, 20, (28, 28, 28)), "y": labels()}, "no axis has 1, 3 or 4 channels"),
        ({"x": pixels(0) * 99.0, "y": labels()}, "values from 0"),
        ({"x": pixels(0), "y": np.array([{}] * 20)}, "truncated or corrupt: it holds object"),
        ({}, "holds 0 arrays"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_in_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        load_data(tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "words"), [("set", "is a folder"), ("no.npz", "does not exist")])
def test_what_is_no_file_is_not_called_damaged(tmp_path, name, words):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=f"{name} {words}; give an .npz of images and labels"):
        load_data(f"npz:{tmp_path / name}")


def test_a_message_about_damage_quotes_few_of_the_bytes(tmp_path):
    """zipfile quotes the whole name that a damaged header gives."""
    path = layouts.write_npz(tmp_path / "mine.npz")
    content = bytearray(path.read_bytes())
    content[26:28] = (2000).to_bytes(2, "little")  # the length of the first member's name
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or corrupt") as caught:
        load_data(path)
    assert len(str(caught.value)) < len(str(path)) + 260
    assert str(caught.value).isprintable()
