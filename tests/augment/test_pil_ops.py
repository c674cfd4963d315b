"""The operations of the policies against Pillow's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.augment.pil_ops import OPS, apply_ops
from pillow_augment import OPERATIONS

SHEARS = (-0.99, -0.3, -0.1, 0.0, 1 / 30, 0.3, 0.5, 0.99)
SHIFTS = (-40.0, -14.5, -1.0, -0.9, 0.0, 0.99, 3.0, 14.5015, 32.0)
FACTORS = (0.0, 0.01, 0.1, 0.37, 0.5, 0.9, 1.0, 1.1, 1.3, 1.9, 1.99, 3.0)
MAGNITUDES = {
    **dict.fromkeys(("shear_x", "shear_y"), SHEARS),
    **dict.fromkeys(("translate_x", "translate_y"), SHIFTS),
    "rotate": (-180.0, -135.0, -90.0, -45.0, -7.3, 0.0, 1.0, 30.0, 60.0, 90.0, 135.0, 180.0),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), FACTORS),
    "posterize": tuple(float(bits) for bits in range(1, 9)),
    "solarize": (0.0, 1.0, 28.4, 127.5, 128.0, 170.0, 255.0, 256.0),
}


def pillow(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
    """(3, H, W) uint8 -> same, by Pillow."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(OPERATIONS[name](picture, magnitude))).permute(2, 0, 1)


def batch(images: torch.Tensor, name: str, magnitudes: list[float]) -> torch.Tensor:
    op = torch.full((len(images),), OPS.index(name))
    return apply_ops(images, op, torch.tensor(magnitudes, dtype=torch.float64))


@pytest.mark.parametrize("size", [(32, 32), (13, 22), (2, 5)])
@pytest.mark.parametrize("name", OPS)
def test_every_operation_equals_pillows_in_every_bit(name, size, pictures):
    images = pictures[:, :, : size[0], : size[1]].contiguous()
    for magnitude in MAGNITUDES.get(name, (0.0,)):
        ours = batch(images, name, [magnitude] * len(images))
        for image, one in zip(images, ours, strict=True):
            assert torch.equal(one, pillow(image, name, magnitude)), (name, magnitude)


@pytest.mark.parametrize("name", [name for name in OPS if name in MAGNITUDES])
def test_operations_equal_pillows_at_random_magnitudes(name, photos):
    low, high = min(MAGNITUDES[name]), max(MAGNITUDES[name])
    magnitudes = np.random.default_rng(1).uniform(low, high, 160)
    images = photos.repeat(10, 1, 1, 1)
    for image, one, m in zip(images, batch(images, name, magnitudes), magnitudes, strict=True):
        assert torch.equal(one, pillow(image, name, float(m))), (name, m)


@pytest.mark.parametrize("name", OPS[1:])
def test_every_operation_changes_a_picture(name, pictures):
    images = pictures[19:20]  # between 90 and 140, so autocontrast has something to do
    magnitude = {"shear_x": 0.3, "shear_y": 0.3}.get(name, 5.0)
    assert not torch.equal(batch(images, name, [magnitude]), images)


def test_each_image_gets_its_own_operation_and_magnitude(photos):
    rng = np.random.default_rng(2)
    ops = np.tile(np.arange(len(OPS)), 8)
    names = [OPS[i] for i in ops]
    magnitudes = [float(rng.choice(MAGNITUDES.get(name, (0.0,)))) for name in names]
    images = photos[rng.integers(len(photos), size=len(ops))]
    before = images.clone()
    ours = apply_ops(images, torch.from_numpy(ops), torch.tensor(magnitudes, dtype=torch.float64))
    assert torch.equal(images, before)
    for image, one, name, magnitude in zip(images, ours, names, magnitudes, strict=True):
        assert torch.equal(one, pillow(image, name, magnitude)), (name, magnitude)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_float_images_are_bytes_divided_by_255(dtype, photos):
    op = torch.arange(len(photos)) % len(OPS)
    magnitude = torch.full((len(photos),), 0.7)
    as_bytes = apply_ops(photos, op, magnitude)
    as_floats = apply_ops((photos.double() / 255).to(dtype), op, magnitude)
    assert as_floats.dtype == dtype
    assert torch.equal((as_floats.double() * 255).round().to(torch.uint8), as_bytes)
    assert torch.equal(apply_ops(torch.full((1, 3, 4, 4), 1.7), op[:1], magnitude[:1]).unique(),
                       torch.tensor([1.0]))  # fmt: skip
