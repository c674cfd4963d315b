"""Augmentations against plain per-image loops, on random pixels and real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from leanres.data.augment import AUGMENTS, Draw, augment, generator
from leanres.errors import UserError

N = 4000


def draw(seed: int = 0, epoch: int = 0, n: int = N) -> Draw:
    return Draw(generator(seed, 1), torch.arange(n), epoch, seed)


def pixels(n: int = 8, side: int = 12) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, 3, side, side), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_augmentation_keeps_shape_dtype_and_its_input_and_is_seeded(name, dtype):
    images = pixels().to(dtype)
    before = images.clone()
    once, again = (AUGMENTS[name](images, draw(n=8)) for _ in range(2))
    assert once.shape == images.shape
    assert once.dtype == dtype
    assert torch.equal(images, before)
    assert torch.equal(once, again)
    assert not torch.equal(once, AUGMENTS[name](images, draw(seed=1, n=8)))


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_image_has_a_draw_of_its_own(name):
    same = pixels(1).expand(200, -1, -1, -1).contiguous()
    assert len(AUGMENTS[name](same, draw(n=200)).flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_gives_windows_of_the_padded_image_and_reaches_every_one_evenly(mode):
    image = pixels(1, 6)
    numpy_mode = {"constant": "constant", "reflect": "reflect"}[mode]
    padded = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode=numpy_mode)
    windows = {
        padded[:, y : y + 6, x : x + 6].tobytes(): (y, x) for y in range(5) for x in range(5)
    }
    crops = AUGMENTS["crop"](image.expand(N, -1, -1, -1), draw(), padding=2, mode=mode)
    seen = [windows[crop.contiguous().numpy().tobytes()] for crop in crops]
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert counts.min() > N / 25 * 0.6


def test_flip_mirrors_as_pillow_does_with_the_declared_probability():
    images = pixels(1).expand(N, -1, -1, -1)
    flipped = AUGMENTS["flip"](images, draw(), p=0.25)
    mirror = np.array(ImageOps.mirror(Image.fromarray(images[0].permute(1, 2, 0).numpy())))
    is_mirror = (flipped.permute(0, 2, 3, 1) == torch.from_numpy(mirror)).flatten(1).all(1)
    is_same = (flipped == images).flatten(1).all(1)
    assert (is_mirror ^ is_same).all()
    assert is_mirror.double().mean() == pytest.approx(0.25, abs=0.03)


def test_alternating_flip_shows_both_faces_in_two_epochs_and_starts_with_a_fair_half():
    images = pixels(1).expand(N, -1, -1, -1)
    faces = [
        (AUGMENTS["alternating_flip"](images, draw(epoch=e)) == images).flatten(1).all(1)
        for e in range(4)
    ]
    assert torch.equal(faces[0], ~faces[1])
    assert torch.equal(faces[0], faces[2])
    assert torch.equal(faces[1], faces[3])
    assert faces[0].double().mean() == pytest.approx(0.5, abs=0.03)
    other_seed = (AUGMENTS["alternating_flip"](images, draw(seed=1)) == images).flatten(1).all(1)
    assert (other_seed == faces[0]).double().mean() == pytest.approx(0.5, abs=0.03)


def test_alternating_flip_says_what_it_needs():
    with pytest.raises(UserError, match="indices"):
        AUGMENTS["alternating_flip"](pixels(), Draw(generator(0)))


def test_cutout_fills_one_clipped_square_and_reaches_every_pixel():
    ones = torch.full((N, 3, 12, 12), 200, dtype=torch.uint8)
    holes = AUGMENTS["cutout"](ones, draw(), size=4, fill=7)[:, 0] == 7
    assert holes.any(0).all()  # every pixel is covered in some image
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.flatten(1).sum(1), heights * widths)  # always a rectangle
    inside = (heights == 4) & (widths == 4)
    assert 0.4 < inside.double().mean() < 1  # the rest is clipped by an edge
    assert heights.max() == 4
    assert heights.min() >= 1


def test_steps_are_applied_in_order_from_one_generator():
    images = pixels()
    steps = (("crop", {"padding": 1}), ("flip", {}))
    joint = draw()
    by_hand = AUGMENTS["flip"](AUGMENTS["crop"](images, joint, padding=1), joint)
    assert torch.equal(augment(images, steps, draw()), by_hand)


def test_neighbouring_counters_give_unrelated_generators():
    firsts = {
        float(torch.rand((), generator=generator(s, e, t)))
        for s in range(5)
        for e in range(5)
        for t in range(5)
    }
    assert len(firsts) == 125
