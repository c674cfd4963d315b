"""Crops, flips, rotation and perspective against Pillow and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from leanres.errors import UserError
from pillow_augment import coefficients

N = 4000


def draw(seed: int = 0, epoch: int = 0, n: int = N) -> Draw:
    return Draw(generator(seed, 1), torch.arange(n), epoch, seed)


def pixels(n: int = 8, side: int = 12, width: int | None = None) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, 3, side, width or side), generator=rng, dtype=torch.uint8)


def picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def planes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_gives_every_window_of_the_padded_image_equally_often(mode):
    image = pixels(1, 6)
    padded = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode=mode)
    windows = {
        padded[:, y : y + 6, x : x + 6].tobytes(): (y, x) for y in range(5) for x in range(5)
    }
    crops = AUGMENTS["crop"](image.expand(N, -1, -1, -1), draw(), padding=2, mode=mode)
    seen = [windows[crop.contiguous().numpy().tobytes()] for crop in crops]
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert counts.min() > N / 25 * 0.6


@pytest.mark.parametrize(
    ("name", "mirror"), [("flip", ImageOps.mirror), ("vertical_flip", ImageOps.flip)]
)
def test_a_flip_equals_pillows_and_has_the_declared_probability(name, mirror):
    images = pixels(1).expand(N, -1, -1, -1)
    flipped = AUGMENTS[name](images, draw(), p=0.25)
    is_mirror = (flipped == planes(mirror(picture(images[0])))).flatten(1).all(1)
    is_same = (flipped == images).flatten(1).all(1)
    assert (is_mirror ^ is_same).all()
    assert is_mirror.double().mean() == pytest.approx(0.25, abs=0.03)


def test_alternating_flip_shows_both_orientations_in_two_epochs_and_a_random_half_first():
    images = pixels(1).expand(N, -1, -1, -1)
    unflipped = [
        (AUGMENTS["alternating_flip"](images, draw(epoch=e)) == images).flatten(1).all(1)
        for e in range(4)
    ]
    assert torch.equal(unflipped[0], ~unflipped[1])
    assert torch.equal(unflipped[0], unflipped[2])
    assert torch.equal(unflipped[1], unflipped[3])
    assert unflipped[0].double().mean() == pytest.approx(0.5, abs=0.03)
    other_seed = (AUGMENTS["alternating_flip"](images, draw(seed=1)) == images).flatten(1).all(1)
    assert (other_seed == unflipped[0]).double().mean() == pytest.approx(0.5, abs=0.03)


def test_alternating_flip_without_indices_is_refused():
    with pytest.raises(UserError, match="indices"):
        AUGMENTS["alternating_flip"](pixels(), Draw(generator(0)))


def interpolated(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear interpolation of (3, H, W) at a point; zeros outside. -> (3,)"""
    x, y = x - 0.5, y - 0.5
    found = np.zeros(3)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                found += weight * image[:, row, column]
    return found


def mapped(image: torch.Tensor, origin) -> torch.Tensor:
    """Each pixel of (3, H, W) from the `origin(x, y)` of its centre, in a plain loop."""
    array, result = image.double().numpy(), torch.zeros(image.shape, dtype=torch.float64)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            point = origin(column + 0.5, row + 0.5)
            result[:, row, column] = torch.from_numpy(interpolated(array, *point))
    return result


def angles(n: int, degrees: float) -> torch.Tensor:
    return -degrees + 2 * degrees * torch.rand(n, generator=generator(0, 1))


@pytest.mark.parametrize("degrees", [15, 180])
def test_nearest_rotation_equals_pillows_by_uniform_angles_of_both_signs(degrees, photos):
    images = torch.cat([photos[:, :, :20], photos[:, :, 12:]])
    turned = AUGMENTS["rotation"](images, draw(), degrees=degrees, interpolation="nearest")
    for image, one, angle in zip(images, turned, angles(len(images), degrees), strict=True):
        assert torch.equal(one, planes(picture(image).rotate(float(angle))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_bilinear_rotation_blends_four_pixels_about_the_centre(dtype, photos):
    images = photos[:6, :, :10, :13].to(dtype)
    turned = AUGMENTS["rotation"](images, draw(), degrees=40.0)
    for image, one, angle in zip(images, turned, angles(6, 40.0), strict=True):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

        def origin(x: float, y: float, cos: float = cos, sin: float = sin) -> tuple[float, float]:
            x, y = x - 6.5, y - 5.0
            return cos * x - sin * y + 6.5, sin * x + cos * y + 5.0

        limit = 0.501 if dtype == torch.uint8 else 0.01  # bytes are rounded, not cut
        assert (one.double() - mapped(image, origin)).abs().max() < limit


def corner_moves(n: int, height: int, width: int, distortion: float) -> np.ndarray:
    """(2, n, 4): how far each corner, clockwise from the top left, moves inward on x and on y."""
    rng = generator(0, 1)
    reach = [int(distortion * (side // 2)) for side in (width, height)]
    return np.stack([torch.randint(r + 1, (n, 4), generator=rng).numpy() for r in reach])


def test_nearest_perspective_equals_pillows_from_corners_moved_inward(photos):
    images = photos[:, :, :25].repeat(4, 1, 1, 1)
    settings = {"distortion": 0.6, "p": 1.0, "interpolation": "nearest"}
    seen = AUGMENTS["perspective"](images, draw(), **settings)
    moves = corner_moves(len(images), 25, 32, 0.6)
    assert (moves.min(), moves[0].max(), moves[1].max()) == (0, 9, 7)
    for i, image in enumerate(images):
        data = tuple(coefficients(*moves[:, i], 25, 32))
        expected = planes(picture(image).transform((32, 25), Image.Transform.PERSPECTIVE, data))
        ambiguous = is_ambiguous(data, 25, 32)
        assert ambiguous.mean() < 0.05
        assert torch.equal(seen[i][:, ~ambiguous], expected[:, ~ambiguous])


def is_ambiguous(m: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """(H, W): where the origin is on the border of two pixels, and rounding errors choose one."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    depth = m[6] * x + m[7] * y + 1
    places = np.stack(((m[0] * x + m[1] * y + m[2]), (m[3] * x + m[4] * y + m[5]))) / depth
    return (np.abs(places - places.round()) < 1e-9).any(0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_bilinear_perspective_blends_four_pixels(dtype, photos):
    images = photos[:6, :, :9, :14].to(dtype)
    seen = AUGMENTS["perspective"](images, draw(), p=1.0)
    moves = corner_moves(6, 9, 14, 0.6)
    for i, image in enumerate(images):
        a, b, c, d, e, f, g, h = coefficients(*moves[:, i], 9, 14)

        def origin(x: float, y: float, m=(a, b, c, d, e, f, g, h)) -> tuple[float, float]:
            depth = m[6] * x + m[7] * y + 1
            return (m[0] * x + m[1] * y + m[2]) / depth, (m[3] * x + m[4] * y + m[5]) / depth

        limit = 0.501 if dtype == torch.uint8 else 0.01
        assert (seen[i].double() - mapped(image, origin)).abs().max() < limit


def test_perspective_changes_the_declared_share_of_images():
    images = pixels(1, 8).expand(N, -1, -1, -1)
    same = (AUGMENTS["perspective"](images, draw(), p=0.3) == images).flatten(1).all(1)
    unmoved = 1 / 3**8  # no corner moves
    assert same.double().mean() == pytest.approx(0.7 + 0.3 * unmoved, abs=0.03)


def test_the_strongest_perspective_keeps_values_finite_and_in_range():
    images = torch.rand(N, 3, 6, 7, generator=generator(1))
    seen = AUGMENTS["perspective"](images, draw(), distortion=1.0, p=1.0)
    assert seen.isfinite().all()
    assert seen.min() >= 0
    assert seen.max() <= 1
