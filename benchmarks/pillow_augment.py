"""Augmentation as most libraries do it: one image at a time, by Pillow, in worker processes.

Peers train on it, so that speeds are compared at the same work; the batched functions of
leanres.augment are tested against it. Random numbers are those of the `random` module.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from leanres.augment.policies import AUTO_BINS, CIFAR10_POLICY, NARROW_SPACE, operation_row
from leanres.registry import Table

Picture = Image.Image

# The operations of leanres.augment.pil_ops.OPS, with the same magnitudes.
OPERATIONS: dict[str, Callable[[Picture, float], Picture]] = {
    "identity": lambda image, m: image,
    "shear_x": lambda image, m: _moved(image, 1, m, 0, 0, 1, 0),
    "shear_y": lambda image, m: _moved(image, 1, 0, 0, m, 1, 0),
    "translate_x": lambda image, m: _moved(image, 1, 0, -int(m), 0, 1, 0),
    "translate_y": lambda image, m: _moved(image, 1, 0, 0, 0, 1, -int(m)),
    "rotate": lambda image, m: image.rotate(m),
    "posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "solarize": lambda image, m: ImageOps.solarize(image, m),  # type: ignore[arg-type]
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(m),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(m),
}


def _moved(image: Picture, *matrix: float) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def crop(image: Picture, padding: int = 4) -> Picture:
    """Pad every side by `padding` pixels of 0, cut the original size at a random place."""
    (width, height), x, y = image.size, *(random.randint(0, 2 * padding) for _ in "xy")
    return ImageOps.expand(image, padding).crop((x, y, x + width, y + height))


def flip(image: Picture, p: float = 0.5) -> Picture:
    """Mirror left to right with probability p."""
    return ImageOps.mirror(image) if random.random() < p else image


def auto_augment(image: Picture) -> Picture:
    """A pair of operations of the CIFAR-10 policy: leanres.augment.policies."""
    for name, p, number in random.choice(CIFAR10_POLICY):
        if random.random() < p:
            _, amount, signed, base = operation_row(
                name, number, AUTO_BINS, NARROW_SPACE, image.size[::-1]
            )
            sign = random.choice((-1, 1)) if signed else 1
            image = OPERATIONS[name](image, base + sign * amount)
    return image


def perspective(image: Picture, distortion: float = 0.6, p: float = 0.5) -> Picture:
    """A random perspective with probability p, zeros around: leanres.augment.geometry."""
    if random.random() >= p:
        return image
    width, height = image.size
    x, y = (
        [random.randint(0, int(distortion * (side // 2))) for _ in range(4)]
        for side in (width, height)
    )
    matrix = coefficients(x, y, height, width)
    kind, filtered = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, tuple(matrix), filtered)


def coefficients(
    dx: Sequence[int], dy: Sequence[int], height: int, width: int
) -> NDArray[np.float64]:
    """The eight coefficients that map the moved corners back to the image's own."""
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], float)
    inward = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    moved = corners + inward * np.stack((dx, dy), 1)
    rows = []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    return np.linalg.solve(np.array(rows), corners.ravel())


STEPS: Table[Callable[[Picture], Picture]] = Table(
    "augmentation of the peers",
    {"crop": crop, "flip": flip, "auto_augment": auto_augment, "perspective": perspective},
)
