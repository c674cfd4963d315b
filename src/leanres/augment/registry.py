"""AUGMENTS: batched functions on (N, C, H, W) tensors, one independent draw per image.

Each takes uint8 or float images and a `Draw`, returns new images and leaves its input alone;
none waits for the device. Floats count as [0, 1] where a colour is computed: normalise after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from leanres.augment.color import color_jitter
from leanres.augment.erase import cutout, random_erasing
from leanres.augment.geometry import (
    alternating_flip,
    crop,
    flip,
    perspective,
    rotation,
    vertical_flip,
)
from leanres.augment.policies import auto_augment, rand_augment, trivial_augment
from leanres.augment.rng import Draw
from leanres.registry import Spec, Table

AUGMENTS: Table[Callable[..., Tensor]] = Table(
    "augmentation",
    {
        "crop": crop,
        "flip": flip,
        "alternating_flip": alternating_flip,
        "vertical_flip": vertical_flip,
        "rotation": rotation,
        "perspective": perspective,
        "cutout": cutout,
        "random_erasing": random_erasing,
        "color_jitter": color_jitter,
        "auto_augment": auto_augment,
        "rand_augment": rand_augment,
        "trivial_augment": trivial_augment,
    },
)


def augment(images: Tensor, steps: Sequence[Spec], draw: Draw) -> Tensor:
    """Apply the named steps in order, all from one generator. (N, C, H, W) -> same."""
    for name, settings in steps:
        images = AUGMENTS[name](images, draw, **settings)
    return images
