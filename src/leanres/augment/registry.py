"""AUGMENTS: every augmentation by name; `augment` applies a recipe's list of them.

An augmentation is a function of images (N, C, H, W), uint8 or float, and a `Draw`. It returns new
images, leaves its input unchanged, draws independently for each image, and never waits for the
device. Float images are in [0, 1], so normalise afterwards. Parameters with a default are settings
of a recipe; their ranges stand in `Annotated[..., Range(...)]`.
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

# These change colours, or draw them: they need pixel values, not normalised ones.
OF_PIXEL_VALUES = (
    "random_erasing",
    "color_jitter",
    "auto_augment",
    "rand_augment",
    "trivial_augment",
)


def augment(images: Tensor, steps: Sequence[Spec], draw: Draw) -> Tensor:
    """Apply the named augmentations in order, with one generator. (N, C, H, W) -> same."""
    for name, settings in steps:
        images = AUGMENTS[name](images, draw, **settings)
    return images
