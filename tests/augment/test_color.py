"""Colour jitter against a plain loop over pixels with the standard library's HSV."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from leanres.augment.color import shift_hue
from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator

N = 48
NAMES = ("brightness", "contrast", "saturation", "hue")


def draws(n: int, strengths: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) settings in the order of `strengths`, and (n, K) the order of their application."""
    rng = generator(0, 1)
    columns = []
    for name in strengths:
        low, high = max(0.0, 1 - strengths[name]), 1 + strengths[name]
        low, high = (-strengths[name], strengths[name]) if name == "hue" else (low, high)
        columns.append(low + (high - low) * torch.rand(n, generator=rng).double().numpy())
    return np.stack(columns, 1), torch.rand(n, len(strengths), generator=rng).argsort(1).numpy()


def grey(image: np.ndarray) -> np.ndarray:
    return (0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2])[None]


def turned(image: np.ndarray, shift: float) -> np.ndarray:
    """(3, H, W) in [0, 1], pixel by pixel."""
    result = np.empty_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x])
        result[:, y, x] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    return result


def changed(image: np.ndarray, name: str, setting: float) -> np.ndarray:
    if name == "hue":
        return turned(image, setting)
    base = {"brightness": 0.0, "contrast": grey(image).mean(), "saturation": grey(image)}[name]
    return np.clip(setting * image + (1 - setting) * base, 0, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("only", [*NAMES, "all", "all but hue"])
def test_jitter_equals_a_plain_loop_in_the_order_drawn_for_each_image(only, dtype, photos):
    full = {"brightness": 0.6, "contrast": 0.8, "saturation": 1.5, "hue": 0.5}
    active = {"all": NAMES, "all but hue": NAMES[:3]}.get(only, (only,))
    strengths = {name: full[name] for name in active}
    images = photos[:, :, 10:15, 10:16].repeat(3, 1, 1, 1)
    given = images if dtype == torch.uint8 else images / 255
    jittered = AUGMENTS["color_jitter"](
        given, Draw(generator(0, 1)), **dict.fromkeys(NAMES, 0.0) | strengths
    )
    settings, order = draws(N, strengths)
    assert len({tuple(row) for row in order.tolist()}) > 0.75 * math.factorial(len(active))
    for i, image in enumerate(images.double().numpy() / 255):
        for which in order[i]:
            image = changed(image, active[which], settings[i, which])
        ours = jittered[i].double().numpy() / (255 if dtype == torch.uint8 else 1)
        limit = 0.501 / 255 if dtype == torch.uint8 else 2e-5
        assert np.abs(ours - image).max() < limit


def test_every_order_is_drawn():
    order = draws(N * 20, dict.fromkeys(NAMES, 0.1))[1]
    assert len({tuple(row) for row in order.tolist()}) == 24


def test_strengths_of_zero_change_nothing(photos):
    still = dict.fromkeys(NAMES, 0.0)
    assert torch.equal(AUGMENTS["color_jitter"](photos, Draw(generator(0)), **still), photos)


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 1 / 3, 0.49])
def test_hue_rotates_as_in_the_standard_library_for_primary_colours_greys_and_photos(shift, photos):
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.view(1, 3, 3, 9)
    for images in (corners, photos[:2, :, :8, :8] / 255):
        ours = shift_hue(images, torch.full((len(images), 1, 1, 1), shift))
        for image, one in zip(images.double().numpy(), ours.numpy(), strict=True):
            assert np.abs(turned(image, shift) - one).max() < 1e-5
