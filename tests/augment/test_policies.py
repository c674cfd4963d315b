"""The three policies: every outcome and its frequency, against trees of Pillow's operations."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from leanres.augment.policies import CIFAR10_POLICY
from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from pillow_augment import OPERATIONS, auto_augment

N = 1500
SIDE = 18  # pixels enough for equalize to act
# arXiv:1805.09501, table 7: operation, probability, magnitude of 0 to 9; "-" where it has none
TABLE_7 = """
Invert .1 - Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3;
ShearY .5 8 TranslateY .7 9; AutoContrast .5 - Equalize .9 -; ShearY .2 7 Posterize .3 7;
Color .4 3 Brightness .6 7; Sharpness .3 9 Brightness .7 9; Equalize .6 - Equalize .5 -;
Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8; Equalize .3 - AutoContrast .4 -;
TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert .0 -;
Equalize .2 - AutoContrast .6 -; Equalize .2 - Equalize .6 -; Color .9 9 Equalize .6 -;
AutoContrast .8 - Solarize .2 8; Brightness .1 3 Color .7 0; Solarize .4 5 AutoContrast .9 -;
TranslateY .9 9 TranslateY .7 9; AutoContrast .9 - Solarize .8 3; Equalize .8 - Invert .1 -;
TranslateY .7 9 AutoContrast .9 -
"""
ENHANCE = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *ENHANCE)
SPACE = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")


def source() -> Image.Image:
    """A coloured picture whose histogram autocontrast, equalize and posterize change."""
    rng = np.random.default_rng(4)
    values = 40 + 180 * rng.random((SIDE, SIDE, 3)) ** [1, 2, 3]
    return Image.fromarray(values.astype(np.uint8))


def apply(image: Image.Image, name: str, m: float) -> Image.Image:
    """One operation at a signed magnitude m; for factors, m is the distance from 1."""
    snake = re.sub("([XY])$", r"_\1", name).lower()
    return OPERATIONS[snake](image, m + (name in ENHANCE))


def magnitude(name: str, number: int, last: int, wide: bool = False) -> float:
    """The magnitude of bin `number` of 0 to `last`, by the definitions of the papers."""
    highest = {
        **dict.fromkeys(("ShearX", "ShearY"), 0.99 if wide else 0.3),
        **dict.fromkeys(("TranslateX", "TranslateY"), 32 if wide else 150 / 331 * SIDE),
        "Rotate": 135 if wide else 30,
        **dict.fromkeys(ENHANCE, 0.99 if wide else 0.9),
    }
    if name == "Posterize":
        return 8 - round(number / last * (6 if wide else 4))
    if name == "Solarize":
        return 255 - 255 * number / last
    return highest.get(name, 0.0) * number / last


Outcomes = dict[bytes, float]


def outcomes(image: Image.Image, steps: list[tuple[str, float, float]]) -> Outcomes:
    """Each picture that steps (operation, probability, magnitude) may give -> its probability."""
    if not steps:
        return {image.tobytes(): 1.0}
    (name, p, m), *rest = steps
    signs = (1, -1) if name in SIGNED else (1,)
    branches = [(apply(image, name, sign * m), p / len(signs)) for sign in signs]
    branches.append((image, 1 - p))
    return merged([(outcomes(branch, rest), probability) for branch, probability in branches])


def merged(parts: list[tuple[Outcomes, float]]) -> Outcomes:
    total: Outcomes = defaultdict(float)
    for possible, weight in parts:
        for picture, probability in possible.items():
            total[picture] += weight * probability
    return {picture: probability for picture, probability in total.items() if probability > 0}


def table_7() -> list[list[tuple[str, float, str]]]:
    words = [pair.split() for pair in TABLE_7.replace("\n", " ").split(";")]
    return [[(w[i], float(w[i + 1]), w[i + 2]) for i in (0, 3)] for w in words]


@cache
def made(name: str, **settings: int) -> list[bytes]:
    """N copies of the source after an augmentation."""
    images = torch.from_numpy(np.array(source())).permute(2, 0, 1).expand(N, -1, -1, -1)
    changed = AUGMENTS[name](images, Draw(generator(0, 1)), **settings)
    return [image.tobytes() for image in changed.permute(0, 2, 3, 1).contiguous().numpy()]


def assert_frequencies(name: str, expected: Outcomes, **settings: int) -> None:
    """Every outcome has its expected frequency (five standard deviations), and no other occurs."""
    assert_counts(Counter(made(name, **settings)), expected)


def assert_counts(seen: Counter[bytes], expected: Outcomes) -> None:
    assert sum(expected.values()) == pytest.approx(1)
    assert set(seen) <= set(expected)
    for picture, probability in expected.items():
        error = math.sqrt(N * probability * (1 - probability))
        assert abs(seen[picture] - N * probability) < 5 * error + 1


def test_the_policy_is_that_of_the_paper():
    ours = [
        [(name.replace("_", ""), p, number) for name, p, number in pair] for pair in CIFAR10_POLICY
    ]
    papers = [
        [(name.lower(), p, int(number.replace("-", "0"))) for name, p, number in pair]
        for pair in table_7()
    ]
    assert len(papers) == 25
    assert ours == papers


def trees() -> list[Outcomes]:
    """The outcomes of each of the 25 pairs for the source."""
    return [
        outcomes(
            source(),
            [(name, p, magnitude(name, int(m.replace("-", "0")), 9)) for name, p, m in pair],
        )
        for pair in table_7()
    ]


def test_auto_augment_applies_every_pair_with_its_probabilities_and_signs():
    assert_frequencies("auto_augment", merged([(tree, 1 / 25) for tree in trees()]))


def test_the_auto_augment_of_the_peers_gives_the_same_pictures_equally_often():
    expected = merged([(tree, 1 / 25) for tree in trees()])
    random.seed(5)
    seen = Counter(auto_augment(source()).tobytes() for _ in range(N))
    assert_counts(seen, expected)


def test_each_of_the_25_pairs_gives_its_own_pictures_and_no_others():
    drawn = torch.randint(25, (N,), generator=generator(0, 1)).tolist()
    seen = made("auto_augment")
    for number, tree in enumerate(trees()):
        of_pair = {picture for picture, n in zip(seen, drawn, strict=True) if n == number}
        assert of_pair <= set(tree)
        assert of_pair >= {picture for picture, probability in tree.items() if probability > 0.15}
        assert len(tree) > 1  # not one leaves every image as it was


@pytest.mark.parametrize("level", [9, 30])
def test_rand_augment_applies_14_operations_equally_often_with_both_signs(level):
    steps = [(name, 1.0, magnitude(name, level, 30)) for name in SPACE]
    expected = merged([(outcomes(source(), [step]), 1 / 14) for step in steps])
    assert len(expected) >= 22  # nine operations of two signs, and four or five others
    assert_frequencies("rand_augment", expected, num_ops=1, magnitude=level)


def test_rand_augment_draws_its_operations_independently():
    steps = [(name, 1.0, magnitude(name, 9, 30)) for name in SPACE]
    pairs = [(outcomes(source(), [first, second]), 1 / 196) for first in steps for second in steps]
    assert_frequencies("rand_augment", merged(pairs))


def test_trivial_augment_applies_14_operations_and_31_wide_magnitudes_equally_often():
    steps = [(name, 1.0, magnitude(name, b, 30, wide=True)) for name in SPACE for b in range(31)]
    expected = merged([(outcomes(source(), [step]), 1 / len(steps)) for step in steps])
    assert len(expected) > 300
    assert_frequencies("trivial_augment", expected)


def test_the_narrow_translation_is_a_share_of_the_side_and_the_wide_one_in_pixels():
    images = torch.full((600, 3, 20, 60), 9, dtype=torch.uint8)
    for name, settings, down, right in (
        ("rand_augment", {"num_ops": 1, "magnitude": 30}, 9, 27),
        ("trivial_augment", {}, 20, 32),
    ):
        moved = AUGMENTS[name](images, Draw(generator(0)), **settings)[:, 0] == 0
        lost = moved.flatten(1).sum(1)
        rows = (moved.all(2).sum(1) * 60 == lost).logical_and(lost > 0)
        columns = (moved.all(1).sum(1) * 20 == lost).logical_and(lost > 0)
        assert moved[rows & ~moved.flatten(1).all(1)].all(2).sum(1).max() == min(down, 19)
        assert moved[columns & ~moved.flatten(1).all(1)].all(1).sum(1).max() == right
