"""Arrays from numpy and PyTorch as data sets, against the same pixels moved by hand."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.data import arrays
from leanres.data.arrays import (
    as_rgb,
    images_of,
    in_channels,
    labels_of,
    room_for,
    shared_room,
)
from leanres.data.split import Dataset
from leanres.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)  # (N, H, W, C)
FIRST = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))  # (N, C, H, W)
LABELS = np.arange(40) % 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PIXELS, FIRST),
        (FIRST, FIRST),
        (torch.from_numpy(FIRST), FIRST),
        (PIXELS.astype(np.int64), FIRST),
        (PIXELS / 255, FIRST),
        (PIXELS.astype(np.float32), FIRST),
        (torch.from_numpy(FIRST).double() / 255, FIRST),
        (PIXELS[..., 0], FIRST[:, :1]),
        (PIXELS[..., :1], FIRST[:, :1]),
    ],
)
def test_layouts_and_types_give_the_same_bytes(given, expected):
    found = images_of(given)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected)


def test_rgba_keeps_four_channels_and_other_sizes_are_resized():
    assert images_of(np.zeros((2, 8, 8, 4), np.uint8)).shape == (2, 4, 8, 8)
    assert images_of(np.zeros((2, 8, 12), np.uint8), size=5).shape == (2, 1, 5, 5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (PIXELS[0, 0], r"\(8, 3\): give"),
        (PIXELS[..., :2], "no axis has 1, 3 or 4"),
        (np.zeros((2, 3, 8, 3)), "either axis"),
        (PIXELS[:, :5], "5x8 pixels: give square ones, or a size"),
        (PIXELS.astype(np.int64) * 257, "values from 0 to 65535"),
        (PIXELS / 255 - 0.5, "values from -0.5 to 0.5"),
        (np.full((2, 8, 8, 3), np.nan), "values from nan"),
        (PIXELS > 3, "of type bool"),
    ],
)
def test_arrays_that_are_no_images_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        images_of(given, "these")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([3, 1, 3], None, ([1, 0, 1], ("1", "3"))),
        ([[2], [0], [2]], ("a", "b", "c"), ([2, 0, 2], ("a", "b", "c"))),
        ([1.0, 0.0, 1.0], None, ([1, 0, 1], ("0", "1"))),
        (["c10", "c2", "c10"], None, ([1, 0, 1], ("c2", "c10"))),
        (np.array([b"x", b"y", b"x"]), None, ([0, 1, 0], ("x", "y"))),
        (["b", "a", "b"], ("b", "a"), ([0, 1, 0], ("b", "a"))),
        (torch.tensor([5, 4, 5]), None, ([1, 0, 1], ("4", "5"))),
    ],
)
def test_labels_are_numbered(labels, classes, expected):
    (found,), names = labels_of([labels], classes)
    assert (found.tolist(), names) == expected


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0.5, 1], None, "whole numbers or names"),
        ([None, 1], None, "whole numbers or names"),
        (np.eye(3), None, r"\(3, 3\)"),
        (["a", "z"], ("a", "b"), "'z' is no class"),
        (np.arange(2000), None, "2,000 classes: give at most 1,000"),
    ],
)
def test_labels_of_other_kinds_are_refused(labels, classes, words):
    with pytest.raises(UserError, match=words):
        labels_of([labels], classes)


def test_a_data_set_of_arrays_holds_out_a_test_split_or_takes_the_one_given():
    own = Dataset.from_arrays(PIXELS, LABELS, files=[f"{i}" for i in range(40)])
    assert len(own.train) + len(own.test) == 40
    assert {*own.train.files} | {*own.test.files} == {f"{i}" for i in range(40)}
    given = Dataset.from_arrays(PIXELS[:30], LABELS[:30], test=(PIXELS[30:], LABELS[30:]))
    assert (len(given.train), len(given.test)) == (30, 10)
    assert given.train.classes == ("0", "1", "2", "3")
    with pytest.raises(UserError, match="test and train differ"):
        Dataset.from_arrays(PIXELS, LABELS, test=(PIXELS[:, :4, :4], LABELS))


def test_a_screen_shows_grey_as_rgb_and_rgba_over_white():
    pixels = torch.randint(256, (3, 4, 5, 5), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(as_rgb(pixels[:, :1]), pixels[:, :1].repeat(1, 3, 1, 1))
    assert torch.equal(as_rgb(pixels[:, :3]), pixels[:, :3])
    for image, shown in zip(pixels, as_rgb(pixels), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        white = Image.new("RGBA", picture.size, "white")
        composed = np.array(Image.alpha_composite(white, picture).convert("RGB"))
        assert np.abs(shown.permute(1, 2, 0).numpy().astype(int) - composed).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_arrays_are_converted_to_grey_rgb_or_rgba_as_pillow_does(mode, channels):
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    pixels = torch.from_numpy(np.array(picture).reshape(8, 8, -1)).permute(2, 0, 1)[None]
    expected = np.array(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    found = in_channels(pixels, channels)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected.reshape(8, 8, channels))


def test_arrays_of_a_data_set_keep_their_channels_until_others_are_asked_for():
    data = Dataset.from_arrays(PIXELS[..., 0], LABELS)
    assert data.train.channels == data.test.channels == 1
    rgba = data.in_channels(4)
    assert rgba.train.channels == rgba.test.channels == 4
    assert torch.equal(rgba.in_channels(1).train.images, data.train.images)
    assert rgba.notes[-1] == "images are converted from grey to RGBA"
    assert data.in_channels(None) is data.in_channels(1) is data


# --- room for images ------------------------------------------------------------------------------


def test_large_arrays_lie_in_a_nameless_file_and_small_ones_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("leanres.data.arrays.IN_MEMORY", 1000)
    small, large = room_for((10, 3, 4, 4)), room_for((100, 3, 4, 4))
    assert (type(small), type(large)) == (np.ndarray, np.memmap)
    assert not list((tmp_path / "cache").iterdir())
    large[:] = 7
    assert torch.from_numpy(large).sum() == 7 * 4800


def test_without_room_on_the_disk_it_is_memory(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("leanres.data.arrays.IN_MEMORY", 1000)
    monkeypatch.setattr("os.posix_fallocate", full)
    assert type(room_for((100, 3, 4, 4))) is np.ndarray
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("leanres.data.arrays.IN_MEMORY", 1000)
    assert type(room_for((100, 3, 4, 4))) is np.ndarray


def test_images_that_are_held_out_are_the_same_in_memory_and_not(tmp_path, monkeypatch, digits):
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    plain = digits.with_val(0.2)
    monkeypatch.setattr("leanres.data.arrays.IN_MEMORY", 1000)
    mapped = digits.with_val(0.2)
    for name, split in plain.splits.items():
        assert torch.equal(split.images, mapped.splits[name].images)
        assert split.fingerprint == mapped.splits[name].fingerprint


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_floats_that_numpy_lacks_are_taken(kind):
    images = torch.rand((6, 4, 4), generator=torch.Generator().manual_seed(0)).to(kind)
    as_float = images_of(images.float())
    assert torch.equal(images_of(images), as_float)
    numbers = torch.arange(6).to(kind)
    assert labels_of([numbers])[0][0].tolist() == list(range(6))


@pytest.mark.parametrize("wrong", [[[1, 2], [3]], torch.rand(6, 4, 4).to_sparse()])
def test_what_is_no_array_is_refused(wrong):
    with pytest.raises(UserError, match="is no array"):
        images_of(wrong)


def test_a_large_array_is_a_file_that_processes_share_and_a_damaged_one_is_made_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path))
    filled = []

    def room(name: str, value: int = 7):
        def fill(array):
            filled.append(name)
            array[:] = value

        return shared_room(
            f"{name}.images", (50, 3, 2, 2), fill, lambda array: bool((array == value).all())
        )

    first, second = room("a"), room("a")
    assert filled == ["a"]
    assert (first == 7).all()
    second[0] = 1  # its own copy
    assert (first == 7).all()
    (file,) = (tmp_path / "shared").glob("*.images")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert (room("a") == 7).all()
    file.write_bytes(b"short")
    assert (room("a") == 7).all()
    assert filled == ["a"] * 3
    for name in "bcdef":
        room(name)
    kept = {file.stem for file in (tmp_path / "shared").glob("*.images")}
    assert len(kept) == arrays.KEPT
    assert "f" in kept
    assert not [*(tmp_path / "shared").glob("*.partial")]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "file"))  # no folder
    assert (room("g") == 7).all()


def test_what_cannot_be_filled_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path))

    def fill(array):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared_room("a.images", (50, 3, 2, 2), fill, lambda array: True)
    assert not [file for file in (tmp_path / "shared").iterdir() if file.suffix in arrays.SUFFIXES]
