"""The operations of AutoAugment and its heirs, each image with an operation of its own.

Equal to Pillow's in every bit. An image has one operation, so three passes do for all of them:
lookup tables, blends, affine maps; an image without an operation of that kind passes unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanres.augment.geometry import affine, rotation_matrix

OPS = (  # an operation is its place here; its magnitude is
    "identity",
    "shear_x",  # pixels to the right per pixel down: the origin's; the top row stays
    "shear_y",  # likewise down; the left column stays
    "translate_x",  # pixels to the right, whole: the fraction is dropped
    "translate_y",  # pixels down, likewise
    "rotate",  # degrees, anticlockwise about the centre
    "brightness",  # factor, towards black at 0, as of the next three
    "color",  # factor, towards grey
    "contrast",  # factor, towards the mean grey
    "sharpness",  # factor, towards a smoothed image
    "posterize",  # bits kept, the fraction dropped
    "solarize",  # values from here on are inverted
    "autocontrast",
    "equalize",
    "invert",
)


def apply_ops(images: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
    """Apply to each image the operation `OPS[op]` at its magnitude, whose unit is Pillow's.

    images (N, 3, H, W) uint8, op (N,) int64, magnitude (N,) float -> images. Floats count as
    [0, 1]: they are rounded to bytes, changed, and divided by 255 again. ImageEnhance, ImageOps,
    Image.rotate, and Image.transform(AFFINE, NEAREST) with zeros around; shears fix the top left
    corner, as in arXiv:1805.09501's code and torchvision, whose sign translations have as well.
    """
    if images.is_floating_point():
        pixels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return (apply_ops(pixels, op, magnitude).float() / 255).to(images.dtype)
    amount = magnitude.double()
    blended = _blends(_lookup(images, op, amount), op, amount)
    return affine(blended, _matrices(op, amount, *images.shape[2:]))


def _is(op: Tensor, name: str) -> Tensor:
    return op == OPS.index(name)


def _lookup(images: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """Operations that send every value of a channel to another, wherever it stands."""
    values = images.flatten(2).long()
    tables = _tables(images, values, op[:, None, None], amount[:, None, None])
    return tables.gather(2, values).view_as(images)


def _tables(images: Tensor, values: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """What becomes of each value: (N, C, 256) uint8. values (N, C, H * W); op (N, 1, 1)."""
    level = torch.arange(256, device=images.device)
    kept = 255 & -(1 << (8 - amount.long()).clamp(0, 8))  # posterize: the bits that stay
    counts = _counts(values)
    options = {
        "brightness": blend(torch.zeros_like(level), level, amount),
        "contrast": blend(_mean_grey(images), level, amount),
        "posterize": level & kept,
        "solarize": torch.where(level < amount, level, 255 - level),
        "autocontrast": _autocontrast(counts, level),
        "equalize": _equalize(counts, level),
        "invert": 255 - level,
    }
    tables = level.to(torch.uint8).expand(counts.shape)
    for name, option in options.items():
        tables = torch.where(_is(op, name), option.to(torch.uint8), tables)
    return tables


def blend(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """base + factor * (pixels - base), cut to bytes as Pillow does: in float32, fraction dropped.

    Integer tensors and a float one that broadcast -> uint8.
    """
    mixed = base + factor.float() * (pixels - base)
    return mixed.clamp(0, 255).to(torch.uint8)


def _counts(values: Tensor) -> Tensor:
    """How often each value occurs. (N, C, H * W) int64 -> (N, C, 256) int32."""
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=values.device)
    return counts.scatter_add_(2, values, counts.new_ones(1).expand(values.shape))


def _autocontrast(counts: Tensor, level: Tensor) -> Tensor:
    """Stretch the values in use to all of [0, 255]; one value alone stays. -> (N, C, 256)."""
    used = counts > 0
    low = torch.where(used, level, 255).amin(2, keepdim=True)
    high = torch.where(used, level, 0).amax(2, keepdim=True)
    # In 64 bits and in Pillow's order of terms, or some values would be one off; a number over a
    # tensor is taken for the number times its reciprocal.
    spread = (high - low).clamp(min=1).double()
    scale = torch.full_like(spread, 255) / spread
    stretched = (level * scale + -low * scale).clamp(0, 255).long()
    return torch.where(high > low, stretched, level)


def _equalize(counts: Tensor, level: Tensor) -> Tensor:
    """Spread the values so that each range of them is as frequent as any. -> (N, C, 256)."""
    highest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    below = counts.cumsum(2, dtype=torch.int32)
    step = (below[:, :, -1:] - counts.gather(2, highest)) // 255
    spread = (step // 2 + below - counts) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp(max=255), level)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in whole numbers, as Pillow rounds it. -> (N, 1, H, W) int32."""
    pixels = images.int()
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _mean_grey(images: Tensor) -> Tensor:
    """The mean grey of each image, rounded, halves up. -> (N, 1, 1) int64."""
    grey = _grey(images).flatten(1)
    n = grey.shape[1]
    return ((2 * grey.sum(1) + n) // (2 * n))[:, None, None]


def _blends(images: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """Operations that draw each pixel nearer to, or farther from, a duller image's."""
    op, amount = op[:, None, None, None], amount[:, None, None, None]
    base = torch.where(_is(op, "color"), _grey(images).to(torch.int16), _smooth(images))
    chosen = _is(op, "color") | _is(op, "sharpness")
    return torch.where(chosen, blend(base, images.to(torch.int16), amount), images)


def _smooth(images: Tensor) -> Tensor:
    """Mean of 3x3 pixels, the middle one five times; the border stays. uint8 -> int16, same shape.

    Thirteenths are never halfway between two whole numbers, so whole numbers round them exactly.
    """
    pixels = images.to(torch.int16)
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _matrices(op: Tensor, amount: Tensor, height: int, width: int) -> Tensor:
    """The affine map of each operation, of most of them the identity. -> (N, 6) float64."""
    zero = torch.zeros_like(amount)
    angle = torch.where(_is(op, "rotate"), amount, zero)
    matrix = rotation_matrix(angle, height, width)
    moves = {
        1: (_is(op, "shear_x"), amount),
        2: (_is(op, "translate_x"), -amount.trunc()),
        3: (_is(op, "shear_y"), amount),
        5: (_is(op, "translate_y"), -amount.trunc()),
    }
    columns = list(matrix.unbind(1))
    for column, (chosen, value) in moves.items():
        columns[column] = torch.where(chosen, value, columns[column])
    return torch.stack(columns, 1)
