"""AUGMENTS: every augmentation by name; `augment` applies a recipe's list of them.

An augmentation is a function of images (N, C, H, W), uint8 or float, and a `Draw`. It returns new
images, leaves its input unchanged, draws independently for each image, and never waits for the
device. Float images are in [0, 1], so normalise afterwards. Operations on colours leave the alpha
of RGBA images as it is, and those on saturation and hue leave grey images as they are; all others
treat every channel alike. Parameters with a default are settings of a recipe; their ranges stand in
`Annotated[..., Range(...)]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from leanres.augment import color, erase, geometry, policies
from leanres.augment.rng import Draw
from leanres.errors import UserError
from leanres.registry import Spec, Table

AUGMENTS: Table[Callable[..., Tensor]] = Table(
    "augmentation",
    {
        "crop": geometry.crop,
        "flip": geometry.flip,
        "alternating_flip": geometry.alternating_flip,
        "vertical_flip": geometry.vertical_flip,
        "rotation": geometry.rotation,
        "perspective": geometry.perspective,
        "cutout": erase.cutout,
        "random_erasing": erase.random_erasing,
        "color_jitter": color.color_jitter,
        "auto_augment": policies.auto_augment,
        "rand_augment": policies.rand_augment,
        "trivial_augment": policies.trivial_augment,
    },
    takes=("images", "draw"),
)

FLIPS = ("flip", "alternating_flip")  # they mirror images left to right; no policy does
# These change colours, or draw them: they need pixel values, not normalised ones.
OF_PIXEL_VALUES = (
    "random_erasing",
    "color_jitter",
    "auto_augment",
    "rand_augment",
    "trivial_augment",
)


def augment(images: Tensor, steps: Sequence[Spec], draw: Draw) -> Tensor:
    """Apply the named augmentations in order, with one generator. (N, C, H, W) -> same.

    UserError for one that returns anything else than images of the same shape and type.
    """
    for name, settings in steps:
        augmented = AUGMENTS[name](images, draw, **settings)
        check_like(f"augmentation {name}", augmented, images)
        images = augmented
    return images


def check_like(label: str, returned: object, given: Tensor) -> None:
    """UserError where a function did not return a tensor of the shape and type of `given`."""
    wanted = f"{tuple(given.shape)} {given.dtype}"
    if not isinstance(returned, Tensor):
        raise UserError(f"{label} returned a {type(returned).__name__}: return {wanted}")
    came = f"{tuple(returned.shape)} {returned.dtype}"
    if came != wanted:
        raise UserError(f"{label} returned {came}: return {wanted}, as it was given")
