"""Cutout and random erasing: shapes, positions and their frequencies."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator

N = 4000


def draw(seed: int = 0) -> Draw:
    return Draw(generator(seed, 1))


def erased(n: int = N, size: tuple[int, int] = (9, 11), **settings: object) -> torch.Tensor:
    """(N, H, W): where images of 200 became 7."""
    images = torch.full((n, 3, *size), 200, dtype=torch.uint8)
    result = AUGMENTS["random_erasing"](images, draw(), value=7, **settings)
    assert ((result == 7) | (result == 200)).all()
    assert torch.equal(result, result[:, :1].expand_as(result))
    return result[:, 0] == 7


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


def test_several_holes_cover_each_pixel_as_often_as_independent_ones():
    ones = torch.full((N, 3, 12, 12), 200, dtype=torch.uint8)
    single, triple = (
        (AUGMENTS["cutout"](ones, draw(seed), size=4, fill=7, holes=holes)[:, 0] == 7).double()
        for seed, holes in ((1, 1), (2, 3))
    )
    expected = 1 - (1 - single.mean(0)) ** 3
    assert (triple.mean(0) - expected).abs().max() < 0.05
    assert triple.sum((1, 2)).max() == 3 * 16


def rectangle_of_the_paper(h: int, w: int, scale: tuple[float, float], ratio: tuple[float, float]):
    """Height and width of one random rectangle, or None after ten attempts that do not fit."""
    for _ in range(10):
        area = h * w * random.uniform(*scale)
        aspect = math.exp(random.uniform(*(math.log(r) for r in ratio)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < h and width < w:
            return height, width
    return None


@pytest.mark.parametrize("scale", [(0.02, 0.33), (0.5, 0.9), (0.77, 0.9)])
def test_erased_rectangles_have_the_shapes_of_a_plain_loop_of_the_paper(scale):
    random.seed(0)
    rounds, ratio = 5 * N, (0.3, 3.3)
    expected = Counter(rectangle_of_the_paper(9, 11, scale, ratio) or (0, 0) for _ in range(rounds))
    holes = erased(p=1.0, scale=scale, ratio=ratio)
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.flatten(1).sum(1), heights * widths)  # always a rectangle
    ours = Counter(zip(heights.tolist(), widths.tolist(), strict=True))
    assert (ours[0, 0] > 0) == (scale[0] > 0.4)  # ten attempts that fail
    for shape in ours | expected:
        share = (ours[shape] + expected[shape]) / (N + rounds)
        error = math.sqrt(share * (1 - share) * (1 / N + 1 / rounds))
        assert abs(ours[shape] / N - expected[shape] / rounds) <= 5 * error, shape


def test_an_erased_rectangle_starts_at_every_position_where_it_fits():
    holes = erased(p=1.0, scale=(0.16, 0.16), ratio=(1.0, 1.0))  # 4 x 4
    assert holes.flatten(1).sum(1).unique().tolist() == [16]
    starts = Counter(zip(*(holes.any(side).long().argmax(1).tolist() for side in (2, 1)),
                         strict=True))  # fmt: skip
    assert set(starts) == {(y, x) for y in range(6) for x in range(8)}
    assert min(starts.values()) > N / 48 * 0.5


def test_erasing_happens_with_the_declared_probability():
    share = erased(p=0.3, scale=(0.1, 0.2)).flatten(1).any(1).double().mean()
    assert share == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(("dtype", "peak"), [(torch.uint8, 255), (torch.float32, 1)])
def test_random_values_are_uniform_over_the_range_and_differ_between_pixels(dtype, peak):
    images = torch.full((400, 3, 12, 12), 2 * peak if peak == 1 else 0).to(dtype)
    settings = {"p": 1.0, "scale": (0.3, 0.3), "value": "random"}
    erased = AUGMENTS["random_erasing"](images, draw(), **settings)
    values = erased[erased != images].double() / peak
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert (values.min(), values.max()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert (erased[:, 0] != erased[:, 1]).any()
