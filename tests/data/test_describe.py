"""Descriptions of data sets, their duplicates, and the two sample pictures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.data.arrays import as_rgb
from leanres.data.describe import batch_grid, describe, sample_grid
from leanres.data.split import Dataset, Split
from leanres.errors import UserError


def make_split(n: int, seed: int) -> Split:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return Split(images, torch.arange(n) % 2, ("left", "right"))


def with_copies(split: Split, copies: dict[int, torch.Tensor]) -> Split:
    images = split.images.clone()
    for position, image in copies.items():
        images[position] = image
    return Split(images, split.labels, split.classes)


def test_a_description_counts_sizes_and_classes_of_every_split():
    train, test = make_split(11, 0), make_split(4, 1)
    found = describe(Dataset("own", train, None, test, ("one note",), "somewhere"))
    assert list(found.splits) == ["train", "test"]
    assert found.splits["train"].num_images == 11
    assert found.splits["train"].per_class == {"left": 6, "right": 5}
    assert found.splits["test"].size == (8, 8)
    assert found.splits["test"].fingerprint == test.fingerprint
    expected = (train.images.double() / 255).mean((0, 2, 3)).tolist()
    assert found.splits["train"].mean == pytest.approx(expected, rel=1e-12)
    assert (found.notes, found.source) == (("one note",), "somewhere")


def test_a_description_survives_json():
    found = dataclasses.asdict(describe(Dataset("own", make_split(6, 0), make_split(4, 1), None)))
    again = json.loads(json.dumps(found))
    assert again["splits"]["val"]["per_class"] == {"left": 2, "right": 2}
    assert again["duplicates"][0]["count"] == 0


def test_duplicates_are_found_within_and_across_splits_whatever_their_labels():
    plain = make_split(12, 0)
    train = with_copies(plain, {7: plain.images[2], 9: plain.images[2]})
    test = with_copies(make_split(6, 1), {1: plain.images[4], 5: plain.images[4]})
    found = describe(Dataset("own", train, None, test))
    pairs = {(d.first, d.second): (d.count, d.pairs) for d in found.duplicates}
    assert pairs["train", "train"] == (2, ((2, 7), (2, 9)))
    assert pairs["test", "test"] == (1, ((1, 5),))
    assert pairs["train", "test"] == (2, ((4, 1), (4, 5)))
    assert found.duplicates[0].files == (("train[2]", "train[7]"), ("train[2]", "train[9]"))


def test_duplicates_have_the_names_of_their_files():
    plain = make_split(3, 0)
    names = ("left/0.png", "right/1.png", "left/0 (copy).png")
    copies = with_copies(plain, {2: plain.images[0]})
    split = Split(copies.images, copies.labels, copies.classes, names)
    (found,) = describe(Dataset("own", split, None, None)).duplicates
    assert found.files == (("left/0.png", "left/0 (copy).png"),)


def test_images_that_differ_by_one_level_in_one_pixel_are_no_duplicates():
    split = make_split(4, 0)
    near = split.images[0].clone()
    near[0, 0, 0] ^= 1
    found = describe(Dataset("own", with_copies(split, {3: near}), None, None))
    assert [d.count for d in found.duplicates] == [0]


def test_all_duplicates_are_counted_but_only_a_few_are_listed():
    split = Split(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 2, ("a", "b"))
    (found,) = describe(Dataset("own", split, None, None)).duplicates
    assert (found.count, len(found.pairs)) == (19, 5)


def test_a_sample_grid_shows_each_class_in_a_row_of_its_own():
    colours = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    labels = torch.arange(40) % 2
    images = colours[labels][:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    grid = np.asarray(sample_grid(Split(images, labels, ("red", "blue")), per_class=6))
    red, blue = ((grid == colour.numpy()).all(-1) for colour in colours)
    assert red.sum() == blue.sum() == 6 * 16 * 16  # twice the size
    assert red.any(1).nonzero()[0].max() < blue.any(1).nonzero()[0].min()
    left = grid[:, : red.any(0).nonzero()[0].min()]
    assert (left < 128).any()  # the names
    assert (grid[:5] == 255).all()  # on white


def test_a_sample_grid_depends_on_its_seed():
    split = make_split(60, 0)
    one, same, other = (sample_grid(split, 5, seed=seed).tobytes() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_class_with_too_few_images_leaves_white():
    split = Split(make_split(3, 0).images, torch.tensor([0, 0, 2]), ("a", "b", "c"))
    grid = np.asarray(sample_grid(split, per_class=4))
    rows = (grid[10:-10, -30:] == 255).all((1, 2))
    assert rows.all()


def test_a_batch_grid_holds_the_images_in_reading_order():
    images = make_split(5, 0).images
    grid = np.asarray(batch_grid(images, columns=3))
    assert grid.shape == (2 * 18 - 2, 3 * 18 - 2, 3)
    fourth = grid[18:34:2, 0:16:2]
    np.testing.assert_array_equal(fourth, images[3].permute(1, 2, 0).numpy())
    assert (grid[18:, 36:] == 255).all()  # there is no sixth


def test_float_and_uint8_batches_give_the_same_picture_and_are_not_changed():
    images = make_split(4, 0).images
    floats = images.float() / 255
    kept = floats.clone()
    assert batch_grid(floats).tobytes() == batch_grid(images).tobytes()
    assert torch.equal(floats, kept)
    assert isinstance(batch_grid(floats), Image.Image)


def test_values_outside_the_unit_range_are_clipped_and_not_wrapped():
    images = torch.stack([torch.full((3, 4, 4), -0.5), torch.full((3, 4, 4), 1.5)])
    grid = np.asarray(batch_grid(images))
    assert (grid[:, :8] == 0).all()
    assert (grid[:, 10:] == 255).all()


def test_anything_but_a_batch_of_colour_images_is_refused():
    with pytest.raises(UserError, match=r"\(3, 8, 8\)"):
        batch_grid(torch.zeros(3, 8, 8))
    with pytest.raises(UserError, match="at least 1"):
        sample_grid(make_split(4, 0), per_class=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_grids_show_grey_and_rgba_images_in_rgb(channels):
    pixels = torch.randint(256, (6, channels, 5, 5), dtype=torch.uint8)
    split = Split(pixels, torch.arange(6) % 2, ("a", "b"))
    shown = Split(as_rgb(pixels).contiguous(), split.labels, split.classes)
    assert batch_grid(pixels).tobytes() == batch_grid(as_rgb(pixels)).tobytes()
    assert sample_grid(split).tobytes() == sample_grid(shown).tobytes()
