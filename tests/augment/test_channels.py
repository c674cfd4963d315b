"""Augmentations and mixes of grey and RGBA images: as Pillow's for L and RGBA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from leanres.augment.mix import MIXES
from leanres.augment.pil_ops import OPS, apply_ops
from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from pillow_augment import OPERATIONS

MAGNITUDES = {"posterize": 3.0, "solarize": 100.0, "rotate": 30.0, "translate_x": 5.0}
ONLY_COLOURS = ("posterize", "solarize", "autocontrast", "equalize", "invert")  # refused for RGBA


def draw(n: int) -> Draw:
    return Draw(generator(0, 1), torch.arange(n))


@pytest.fixture
def grey(photos) -> Tensor:
    return photos[:8, 1:2].contiguous()


@pytest.fixture
def rgba(photos) -> Tensor:
    return torch.cat((photos[:8], photos[8:, :1]), 1)


def pillow(image: Tensor, name: str, magnitude: float) -> Tensor:
    """(C, H, W) uint8 -> same. Pillow's operations that refuse RGBA see its colours alone."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)
    if picture.mode == "RGBA" and name in ONLY_COLOURS:
        changed = OPERATIONS[name](picture.convert("RGB"), magnitude)
        changed.putalpha(picture.getchannel("A"))
    else:
        changed = OPERATIONS[name](picture, magnitude)
    return torch.from_numpy(np.array(changed)).reshape(*pixels.shape).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["grey", "rgba"])
@pytest.mark.parametrize("name", OPS)
def test_every_operation_equals_pillows_in_every_bit(name, kind, request):
    images, magnitude = request.getfixturevalue(kind), MAGNITUDES.get(name, 0.4)
    op = torch.full((len(images),), OPS.index(name))
    ours = apply_ops(images, op, torch.full((len(images),), magnitude, dtype=torch.float64))
    for image, one in zip(images, ours, strict=True):
        assert torch.equal(one, pillow(image, name, magnitude))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_jitter_changes_the_colours_of_rgba_as_those_of_rgb_and_keeps_the_alpha(dtype, rgba):
    images = rgba if dtype == torch.uint8 else rgba / 255
    jittered = AUGMENTS["color_jitter"](images, draw(8))
    assert torch.equal(jittered[:, :3], AUGMENTS["color_jitter"](images[:, :3], draw(8)))
    assert torch.equal(jittered[:, 3:], images[:, 3:])


def test_grey_images_have_no_saturation_and_no_hue(grey):
    only = {"brightness": 0.0, "contrast": 0.0}
    assert torch.equal(AUGMENTS["color_jitter"](grey, draw(8), **only), grey)
    jittered = AUGMENTS["color_jitter"](grey, draw(8), brightness=0.0).double()
    # contrast stretches or squeezes all values about the mean: their order stays
    for before, after in zip(grey.flatten(1), jittered.flatten(1), strict=True):
        assert (after[before.argsort(stable=True)].diff() >= 0).all()
    assert not torch.equal(jittered, grey.double())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_takes_grey_and_rgba_images(name, channels):
    images = torch.randint(256, (4, channels, 12, 12), generator=generator(2), dtype=torch.uint8)
    before = images.clone()
    for given in (images, images / 255):
        changed = AUGMENTS[name](given, draw(4))
        assert (changed.shape, changed.dtype) == (given.shape, given.dtype)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", MIXES)
def test_every_mix_treats_each_channel_as_it_would_alone(name, channels):
    images = torch.randint(256, (6, 4, 12, 12), generator=generator(3), dtype=torch.uint8)
    targets = torch.eye(6)
    whole, shares = MIXES[name](images, targets, draw(6))
    part, same = MIXES[name](images[:, :channels].contiguous(), targets, draw(6))
    assert torch.equal(part, whole[:, :channels])
    assert torch.equal(shares, same)
