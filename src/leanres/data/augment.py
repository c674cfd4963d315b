"""AUGMENTS: batched functions on (N, C, H, W) tensors, one independent draw per image.

Each takes uint8 or float images and a `Draw`, returns new images and leaves its input alone;
none waits for the device. Floats count as [0, 1] where a colour is computed: normalise after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from leanres.data.color import color_jitter
from leanres.data.draw import Draw, generator
from leanres.data.erase import cutout, random_erasing
from leanres.data.geometry import alternating_flip, crop, flip, perspective, rotation, vertical_flip
from leanres.data.policies import auto_augment, rand_augment, trivial_augment
from leanres.data.settings import check_settings
from leanres.tables import Table

__all__ = ["AUGMENTS", "Draw", "Step", "augment", "check_step", "generator"]

Step = tuple[str, dict[str, Any]]
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


def augment(images: Tensor, steps: Sequence[Step], draw: Draw) -> Tensor:
    """Apply the named steps in order, all from one generator. (N, C, H, W) -> same."""
    for name, settings in steps:
        images = AUGMENTS[name](images, draw, **settings)
    return images


def check_step(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse an unknown augmentation, or settings that it does not take, with a UserError."""
    check_settings(AUGMENTS[name], name, settings)
