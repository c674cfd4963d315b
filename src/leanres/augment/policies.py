"""AutoAugment, RandAugment, TrivialAugment: policies that choose operations and magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from leanres.augment.pil_ops import OPS, apply_ops
from leanres.augment.rng import Draw, constant, rand, randint
from leanres.registry import Range

BINS = 31  # levels of magnitude of RandAugment and TrivialAugment, 0 to 30
AUTO_BINS = 10  # of AutoAugment
_SIGNED = OPS[1:10]  # applied with either sign, equally likely; a factor is 1 +- its magnitude
_FACTORS = OPS[6:10]
SAMPLED_OPS = OPS[:-1]  # the operations of RandAugment and TrivialAugment: all but invert


@dataclass(frozen=True)
class MaxMagnitudes:
    """The magnitude of the last bin, by kind of operation; bin 0 changes nothing, or hardly."""

    shear: float
    translate: float  # share of the side,
    translate_px: float  # plus this number of pixels
    rotate: float  # degrees
    factor: float
    bits: int  # that posterize removes


NARROW_SPACE = MaxMagnitudes(0.3, 150 / 331, 0, 30, 0.9, 4)  # AutoAugment and RandAugment
WIDE_SPACE = MaxMagnitudes(0.99, 0, 32, 135, 0.99, 6)  # TrivialAugment

SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]
CIFAR10_POLICY: tuple[SubPolicy, ...] = (  # (operation, probability, bin of the magnitude), twice
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


def auto_augment(images: Tensor, draw: Draw) -> Tensor:
    """Apply one of 25 pairs of operations to each image, each with its probability and magnitude.

    (N, C, H, W) -> same. arXiv:1805.09501, the CIFAR-10 policy of table 7; random signs and
    magnitudes as in torchvision.
    """
    n, size = len(images), images.shape[2:]
    pairs = [
        [
            [*operation_row(name, number, AUTO_BINS, NARROW_SPACE, size), p]
            for name, p, number in pair
        ]
        for pair in CIFAR10_POLICY
    ]
    table = constant(pairs, images.device, torch.float64)  # (25, 2, 5): a row, its probability
    for rows in table[randint(len(pairs), (n,), draw.rng)].unbind(1):
        chosen = rand((n,), draw.rng) < rows[:, 4]
        images = _apply(images, rows[:, :4] * chosen[:, None], draw)  # all zeros: the identity
    return images


def rand_augment(
    images: Tensor,
    draw: Draw,
    num_ops: Annotated[int, Range(1, 14)] = 2,
    magnitude: Annotated[int, Range(0, 30)] = 9,
) -> Tensor:
    """Apply `num_ops` random operations of 14 to each image, all at `magnitude`, from 0 to 30.

    (N, C, H, W) -> same. arXiv:1909.13719; operations and magnitudes as in torchvision.
    """
    size = images.shape[2:]
    rows = [operation_row(name, magnitude, BINS, NARROW_SPACE, size) for name in SAMPLED_OPS]
    table = constant(rows, images.device, torch.float64)
    for _ in range(num_ops):
        chosen = randint(len(SAMPLED_OPS), (len(images),), draw.rng)
        images = _apply(images, table[chosen], draw)
    return images


def trivial_augment(images: Tensor, draw: Draw) -> Tensor:
    """Apply one random operation of 14 to each image, at one of 31 magnitudes.

    (N, C, H, W) -> same. arXiv:2103.10158, the wide space.
    """
    n, size = len(images), images.shape[2:]
    rows = [
        [operation_row(name, number, BINS, WIDE_SPACE, size) for number in range(BINS)]
        for name in SAMPLED_OPS
    ]
    table = constant(rows, images.device, torch.float64)  # (14, 31, 4)
    op, number = randint(len(SAMPLED_OPS), (n,), draw.rng), randint(BINS, (n,), draw.rng)
    return _apply(images, table[op, number], draw)


def operation_row(
    name: str, number: int, bins: int, maxima: MaxMagnitudes, size: tuple[int, ...]
) -> list[float]:
    """An operation at bin `number` of `bins`: its index in OPS, amount, whether signed, base.

    The magnitude for `apply_ops` is base + amount, or base - amount for the other sign.
    """
    signed, base = name in _SIGNED, 1.0 if name in _FACTORS else 0.0
    # In this order of terms, or a threshold of 170 could be rounded to slightly above it.
    amount = _max_magnitude(name, maxima, *size) * number / (bins - 1)
    decreasing = {"posterize": 8 - round(amount), "solarize": 255 - amount}
    return [OPS.index(name), decreasing.get(name, amount), signed, base]


def _max_magnitude(name: str, maxima: MaxMagnitudes, height: int, width: int) -> float:
    return {
        **dict.fromkeys(("shear_x", "shear_y"), maxima.shear),
        "translate_x": maxima.translate * width + maxima.translate_px,
        "translate_y": maxima.translate * height + maxima.translate_px,
        "rotate": maxima.rotate,
        **dict.fromkeys(_FACTORS, maxima.factor),
        "posterize": maxima.bits,
        "solarize": 255,
    }.get(name, 0.0)


def _apply(images: Tensor, rows: Tensor, draw: Draw) -> Tensor:
    """Apply to each image its row of `operation_row`, (N, 4), with a random sign."""
    op, amount, signed, base = rows.unbind(1)
    minus = (rand((len(images),), draw.rng) < 0.5) & (signed > 0)
    return apply_ops(images, op.long(), base + torch.where(minus, -amount, amount))
