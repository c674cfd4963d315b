"""The predictor: which test-time augmentation it takes, and images of any number, in order."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.augment.registry import AUGMENTS, FLIPS, augment
from leanres.augment.rng import Draw, generator
from leanres.data.image_files import preprocess
from leanres.data.sources import load_data, locate
from leanres.data.unlabelled import CHUNK, find_unlabelled
from leanres.errors import UserError
from leanres.models.preprocess import Preprocess
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.fit import fit, resume
from leanres.runs.predictor import load_predictor, tta_of
from leanres.runs.run import enqueue
from leanres.training.recipe import Recipe
from leanres.training.recipes import RECIPES

SMALL = Recipe(model=SpeedNetConfig((8,)), epochs=1, batch_size=400, accumulate=1, augment=())
FLIPPED = replace(SMALL, augment=(("flip", {}), ("crop", {"padding": 2})))


@pytest.mark.parametrize("name", AUGMENTS)
def test_flips_are_the_augmentations_that_give_mirrored_images(name):
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, 8, 8), generator=rng, dtype=torch.uint8)
    drawn = augment(
        image.repeat(200, 1, 1, 1), [(name, {})], Draw(generator(0, 0), torch.arange(200))
    )
    assert any(torch.equal(one, image[0].flip(2)) for one in drawn) == (name in FLIPS)


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (RECIPES["speed"].augment, "flip-shift"),
        (RECIPES["plain-sgd"].augment, "flip-shift"),
        (RECIPES["digits"].augment, "none"),
        ((("auto_augment", {}), ("vertical_flip", {})), "none"),
        ([["flip", {}]], "flip-shift"),  # as run.json has it
        ((), "none"),
    ],
)
def test_auto_follows_the_recipes_flips(augment, expected):
    assert tta_of(augment) == expected


@pytest.mark.parametrize(("recipe", "expected"), [(SMALL, "none"), (FLIPPED, "flip-shift")])
def test_train_resume_and_evaluate_follow_the_recipe(
    recipe, expected, digits, device, tmp_path, leanres
):
    result = fit(tmp_path / "a", recipe, digits, device)
    assert result["tta"] == expected
    assert expected != "none" or result["accuracy_tta"] == result["accuracy"]
    assert resume(tmp_path / "a", epochs=2, dataset=digits, device=device)["tta"] == expected
    enqueue(tmp_path / "q", recipe, locate("digits"))
    assert resume(tmp_path / "q", device=device)["tta"] == expected
    assert load_predictor(tmp_path / "a").evaluate(digits.test)["tta"] == expected
    shown = [
        json.loads(leanres("evaluate", target, "--data", "digits", "--json", *words).out)["tta"]
        for target in (tmp_path / "a", tmp_path / "a" / "model.safetensors")
        for words in ((), ("--tta", "flip"))
    ]
    assert shown == [expected, "flip", "none", "flip"]  # a weights file does not know its recipe


def test_predictions_come_before_all_files_are_known(three_runs, tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    endless = itertools.repeat(tmp_path / "0.png")
    monkeypatch.setattr("leanres.data.unlabelled.image_paths", lambda folder: endless)
    found = load_predictor(three_runs / "a", "cpu").predict([tmp_path])
    assert {one.id for one in itertools.islice(found, CHUNK + 1)} == {"0.png"}


def test_images_are_classified_in_parts_and_stay_in_order(three_runs, digits, tmp_path):
    predictor = load_predictor(three_runs / "a", "cpu")
    images = digits.train.images[: CHUNK + 3]
    np.save(tmp_path / "batch.npy", images.numpy())
    found = list(predictor.predict([tmp_path / "batch.npy"], top=1))
    assert [one.id for one in found] == [str(i) for i in range(CHUNK + 3)]
    best = predictor.logits(images).argmax(1).tolist()
    assert [one.classes[0] for one in found] == [digits.train.classes[i] for i in best]


def test_twelve_bit_greys_are_read_as_in_training(tmp_path, device):
    """A dark image alone shows less than 12 bits: the run knows the white of its data set."""
    rng = np.random.default_rng(0)
    for kind, low, high in (("dark", 50, 200), ("light", 2000, 4095)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(40):
            grey = rng.integers(low, high, (32, 32)).astype(np.uint16)
            Image.fromarray(grey).save(tmp_path / "set" / kind / f"{i}.png")
    data = load_data(tmp_path / "set")
    fit(tmp_path / "run", replace(SMALL, epochs=8, batch_size=16), data, device)
    predictor = load_predictor(tmp_path / "run")
    assert predictor.preprocess.whites == data.whites == {"integer": 4095}
    dark = tmp_path / "set" / "dark"
    assert {found.classes[0] for found in predictor.predict([dark])} == {"dark"}
    (read,) = next(find_unlabelled([dark / "0.png"]).read(32, 3, predictor.preprocess.whites))
    assert read.pixels.max() <= round(200 / 4095 * 255)
    shown = preprocess(dark / "0.png", 32, whites=predictor.preprocess.whites)
    np.testing.assert_array_equal(shown[0].transpose(1, 2, 0), read.pixels)
    assert preprocess(dark / "0.png", 32).max() > 190  # its own white


@pytest.mark.parametrize("whites", [{"integer": 0}, {"integer": "4095"}, {"int": 255}, [4095], 5])
def test_a_white_that_is_none_is_refused(whites):
    with pytest.raises(UserError, match="whites"):
        Preprocess(32, (0.5,), (0.2,), ("a", "b"), whites)
