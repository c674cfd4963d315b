"""Invalid settings of augmentations are refused before any work, in one line with what fits."""

from __future__ import annotations

import inspect
import re
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
import torch
from torch import Tensor

from leanres.augment.mix import MIXES
from leanres.augment.registry import AUGMENTS, augment
from leanres.augment.rng import Draw, generator, randint
from leanres.errors import UserError
from leanres.registry import Range, check_settings, notes_of, setting_types
from leanres.training.recipe import Recipe, from_dict


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("colour_jitter", {}, "no augmentation 'colour_jitter'; did you mean 'color_jitter'?"),
        ("crop", {"pading": 4}, "no setting of crop 'pading'; did you mean 'padding'?"),
        ("crop", {"padding": -1}, "crop: padding = -1: give a whole number from 0 to 1024"),
        ("crop", {"padding": 1.5}, "padding = 1.5: give a whole number"),
        ("crop", {"mode": "mirror"}, "mode = 'mirror': give 'constant' or 'reflect'"),
        ("crop", {"images": 1}, "no setting of crop 'images'"),
        ("flip", {"p": 2}, "flip: p = 2: give a number from 0 to 1"),
        ("flip", {"p": True}, "p = True: give a number"),
        ("flip", {"p": float("nan")}, "p = nan: give a number"),
        ("flip", {"p": None}, "p = None: give a number"),
        ("alternating_flip", {"p": 0.5}, "alternating_flip has no settings, but 'p' was given"),
        ("rotation", {"degrees": "x"}, "degrees = 'x': give a number from 0 to 360"),
        ("rotation", {"interpolation": "cubic"}, "give 'bilinear' or 'nearest'"),
        ("random_erasing", {"scale": (0.5, 0.2)}, "give two numbers, the lower first, each from 0"),
        ("random_erasing", {"scale": 0.5}, "scale = 0.5: give two numbers"),
        ("random_erasing", {"ratio": [0, 1]}, "each from 0.01 to 100"),
        ("random_erasing", {"value": "x"}, "give a number from 0 to 255, or 'random'"),
        ("random_erasing", {"value": 256}, "give a number from 0 to 255, or 'random'"),
        ("cutout", {"holes": 0}, "holes = 0: give a whole number from 1 to 64"),
        ("color_jitter", {"hue": 0.6}, "hue = 0.6: give a number from 0 to 0.5"),
        ("rand_augment", {"magnitude": 31}, "magnitude = 31: give a whole number from 0 to 30"),
    ],
)
def test_an_unknown_name_or_an_invalid_setting_is_refused(name, settings, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        check_settings(AUGMENTS[name], name, settings)
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
def test_accepted_settings_work(name, settings):
    settings = check_settings(AUGMENTS[name], name, settings)
    images = torch.zeros(4, 3, 8, 8)
    assert AUGMENTS[name](images, Draw(generator(0), torch.arange(4)), **settings).shape == (
        4, 3, 8, 8)  # fmt: skip


@pytest.mark.parametrize(("name", "function"), [*AUGMENTS.items(), *MIXES.items()])
def test_every_setting_has_a_range_and_a_default_within_it(name, function):
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in ("images", "targets", "draw")
    }
    assert check_settings(function, name, defaults) == defaults
    for key, hint in setting_types(function).items():
        if key in defaults:
            assert is_bounded(hint), f"{name}: {key} has no Range"
            with pytest.raises(UserError, match=f"{name}: {key} = "):
                check_settings(function, name, {key: object()})


def is_bounded(hint: object) -> bool:
    """Whether the type admits finitely many values, or numbers of a range only."""
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) in (Union, UnionType):
        return all(map(is_bounded, get_args(hint)))
    return any(isinstance(note, Range) for note in notes_of(hint))


# --- an augmentation of the user's own ------------------------------------------------------


def darken(images: Tensor, draw: Draw, amount: Annotated[int, Range(0, 64)] = 16) -> Tensor:
    """Subtract up to `amount` from each image."""
    drawn = randint(amount + 1, (len(images), 1, 1, 1), draw.rng)
    return (images.int() - drawn).clamp(0).to(images.dtype)


def test_a_new_augmentation_with_a_setting_is_one_function_and_one_table_entry(monkeypatch):
    monkeypatch.setitem(AUGMENTS, "darken", darken)
    recipe = Recipe(augment=["flip", ["darken", {"amount": 40.0}]])
    assert recipe.augment == (("flip", {}), ("darken", {"amount": 40}))
    assert from_dict(recipe.to_dict()) == recipe
    with pytest.raises(UserError) as caught:
        Recipe(augment=(("darken", {"amount": 65}),))
    assert str(caught.value) == "darken: amount = 65: give a whole number from 0 to 64"
    with pytest.raises(UserError, match="no setting of darken 'amont'; did you mean 'amount'"):
        Recipe(augment=(("darken", {"amont": 1}),))
    images = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    changed = augment(images, recipe.augment, Draw(generator(0)))
    assert set(changed[:, 0, 0, 0].tolist()) == set(range(60, 101))
