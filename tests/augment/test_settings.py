"""Settings of augmentations are refused before any work, in one line that says what fits."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from leanres.augment.mix import MIXES
from leanres.augment.registry import AUGMENTS, Draw, check_augment, generator
from leanres.errors import UserError
from leanres.registry import check_settings


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("colour_jitter", {}, "no augmentation 'colour_jitter'; did you mean 'color_jitter'?"),
        ("crop", {"pading": 4}, "no setting of crop 'pading'; did you mean 'padding'?"),
        ("crop", {"padding": -1}, "crop: padding = -1; give a whole number from 0 to 1024"),
        ("crop", {"padding": 1.5}, "padding = 1.5; give a whole number"),
        ("crop", {"mode": "mirror"}, "mode = 'mirror'; give 'constant' or 'reflect'"),
        ("crop", {"images": 1}, "no setting of crop 'images'"),
        ("flip", {"p": 2}, "flip: p = 2; give a number from 0 to 1"),
        ("flip", {"p": True}, "p = True; give a number"),
        ("flip", {"p": float("nan")}, "p = nan; give a number"),
        ("flip", {"p": None}, "p = None; give a number"),
        ("alternating_flip", {"p": 0.5}, "alternating_flip has no settings, but 'p' came"),
        ("rotation", {"degrees": "x"}, "degrees = 'x'; give a number from 0 to 360"),
        ("rotation", {"interpolation": "cubic"}, "give 'bilinear' or 'nearest'"),
        ("random_erasing", {"scale": (0.5, 0.2)}, "give two numbers, the lower first, each from 0"),
        ("random_erasing", {"scale": 0.5}, "scale = 0.5; give two numbers"),
        ("random_erasing", {"ratio": [0, 1]}, "each from 0.01 to 100"),
        ("random_erasing", {"value": "x"}, "give a number from 0 to 255, or 'random'"),
        ("random_erasing", {"value": 256}, "give a number from 0 to 255, or 'random'"),
        ("cutout", {"holes": 0}, "holes = 0; give a whole number from 1 to 64"),
        ("color_jitter", {"hue": 0.6}, "hue = 0.6; give a number from 0 to 0.5"),
        ("rand_augment", {"magnitude": 31}, "magnitude = 31; give a whole number from 0 to 30"),
    ],
)
def test_a_step_that_cannot_be_is_refused(name, settings, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        check_augment(name, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("crop", {"padding": 0, "mode": "reflect"}),
        ("flip", {"p": 1}),
        ("rotation", {"degrees": 0, "interpolation": "nearest"}),
        ("random_erasing", {"scale": [0.1, 0.1], "ratio": (1, 2), "value": "random"}),
        ("random_erasing", {"value": 7}),
        ("alternating_flip", {}),
        ("cutout", {"size": 0, "fill": 0.5, "holes": 64}),
        ("perspective", {"distortion": 1, "p": 0.0}),
    ],
)
def test_what_is_accepted_also_works(name, settings):
    check_augment(name, settings)
    images = torch.zeros(4, 3, 8, 8)
    assert AUGMENTS[name](images, Draw(generator(0), torch.arange(4)), **settings).shape == (
        4, 3, 8, 8)  # fmt: skip


@pytest.mark.parametrize(("name", "function"), [*AUGMENTS.items(), *MIXES.items()])
def test_every_setting_has_a_default_that_passes_and_a_range(name, function):
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in ("images", "targets", "draw")
    }
    check_settings(function, name, defaults)
    for key in defaults:  # no type of setting takes an object
        with pytest.raises(UserError, match=f"{name}: {key} = "):
            check_settings(function, name, {key: object()})
