from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.report import pictures


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert re.fullmatch("data:image/(png|jpeg);base64", head)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.fixture
def image() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 32, 32), generator=rng, dtype=torch.uint8)


def test_a_small_image_is_kept_pixel_by_pixel_and_a_large_one_is_shrunk(image):
    assert (decoded(pictures.data_uri(image)) == image.permute(1, 2, 0).numpy()).all()
    large = image.repeat_interleave(8, 1).repeat_interleave(16, 2)  # 256x512
    assert decoded(pictures.data_uri(large)).shape == (128, 256, 3)
    own = image.float().mean(1, keepdim=True).byte().expand(-1, 96, -1).repeat(1, 1, 3)
    difference = decoded(pictures.data_uri(own)).astype(int) - own.permute(1, 2, 0).numpy()
    assert difference.shape == (96, 96, 3)  # its own size
    assert abs(difference).mean() < 20  # a JPEG


def test_an_overlay_is_brightest_where_the_map_is_largest(image):
    grey = torch.full_like(image, 100)
    heat = torch.zeros(4, 4)
    heat[0, 3] = 2.0
    shown = pictures.overlay(grey, heat).float().mean(0)
    assert shown.shape == (64, 64)
    y, x = divmod(int(shown.argmax()), 64)
    assert y < 16
    assert x > 48
    assert torch.equal(pictures.overlay(grey, heat), pictures.overlay(grey, 5 * heat))


@pytest.mark.parametrize(("value", "why"), [(0.0, "blank"), (float("nan"), "not finite")])
def test_an_invalid_map_is_named_and_not_drawn(image, value, why):
    heat = torch.full((3, 3), value)
    with pytest.raises(ValueError, match=f"the map is {why}"):
        pictures.overlay(image, heat)
    figure = pictures.heat_maps(image[None], heat[None], ["cat"])
    assert figure.axes[0].get_title() == f"cat\n({why})"
    assert (figure.axes[0].images[0].get_array() == image.permute(1, 2, 0).numpy()).all()


def test_filters_are_placed_side_by_side_each_on_its_own_scale():
    weights = torch.zeros(3, 3, 2, 2)
    weights[0], weights[1], weights[2, 0] = 5.0, -0.1, 0.2
    tiles = pictures.mosaic(weights, columns=2)
    assert tiles.shape == (3, 6, 6)  # two rows of two filters with a grey pixel between them
    assert tiles[:, 0, 0].tolist() == [255, 255, 255]
    assert tiles[:, 0, 3].tolist() == [0, 0, 0]
    assert tiles[:, 3, 0].tolist() == [255, 128, 128]
    assert tiles[:, 2, 2].tolist() == [128, 128, 128]
    rgba = torch.cat((weights, torch.zeros(3, 1, 2, 2)), 1)
    assert torch.equal(pictures.mosaic(rgba, columns=2), tiles)  # its colours
    grey = pictures.mosaic(weights[:, :1], columns=2)
    assert torch.equal(grey, tiles[:1].expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"weights of \(2, 2, 3, 3\)"):
        pictures.mosaic(torch.zeros(2, 2, 3, 3))


def test_a_grid_has_a_picture_for_each_image(image):
    figure = pictures.image_grid(image.expand(5, 3, 32, 32), ["x"] * 5, columns=3)
    assert sum(bool(axes.images) for axes in figure.axes) == 5
    assert len(figure.axes) == 6
