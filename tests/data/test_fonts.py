"""Fonts for class names: chosen where one has the letters, else the name is escaped."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, features

from leanres.data import fonts
from leanres.data.describe import sample_grid
from leanres.data.fonts import drawable
from leanres.data.split import Split


@pytest.fixture
def _only_dejavu(monkeypatch):
    """A machine with matplotlib's own fonts alone: DejaVu has Arabic letters, and no Chinese."""
    entries = font_manager.fontManager.ttflist
    own = [e for e in entries if e.name in ("DejaVu Sans", "Last Resort High-Efficiency")]
    monkeypatch.setattr(font_manager, "fontManager", SimpleNamespace(ttflist=own))
    fonts._font_with.cache_clear()
    yield
    fonts._font_with.cache_clear()


def ink(text: str) -> np.ndarray:
    """The pixels of a text in the font that was chosen for it."""
    shown, font = drawable(text, 20)
    picture = Image.new("L", (200, 40))
    ImageDraw.Draw(picture).text((5, 5), shown, fill=255, font=font)
    return np.asarray(picture)


@pytest.mark.usefixtures("_only_dejavu")
def test_a_font_with_the_letters_is_chosen_else_the_name_is_escaped():
    assert drawable("cat", 15)[0] == "cat"
    for name in ("Ünïcödé", "кот", "γάτα"):
        assert drawable(name, 15)[0] == name
        assert not np.array_equal(ink(name), ink("\u2610" * len(name)))  # letters, no boxes
    assert drawable("猫 b", 15)[0] == "\\u732b b"


@pytest.mark.usefixtures("_only_dejavu")
@pytest.mark.parametrize("can_shape", [True, False])
def test_right_to_left_names_are_drawn_where_they_can_be_laid_out(monkeypatch, can_shape):
    if can_shape and not features.check("raqm"):
        pytest.skip("this Pillow cannot lay out right-to-left text")
    monkeypatch.setattr(fonts.features, "check", lambda name: can_shape)
    shown, _ = drawable("قطة", 15)
    assert shown == ("قطة" if can_shape else "\\u0642\\u0637\\u0629")


def test_a_picture_keeps_its_size_with_long_names_many_classes_and_large_images():
    many = tuple(f"{'a long name ' * 4}{i}" for i in range(300))
    images = np.zeros((300, 3, 8, 8), np.uint8)
    split = Split(torch.from_numpy(images), torch.arange(300), many)
    grid = sample_grid(split, per_class=2)
    assert grid.height == 20 + 100 * 18  # a hundred of them
    assert grid.width < 500
    large = Split(torch.zeros(4, 3, 300, 300, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    assert sample_grid(large, per_class=2).height == 20 + 2 * 130
