"""Pillow's image operations, batched: every image of a batch has its own operation.

AutoAugment and its successors consist of them. Results equal Pillow's in every bit. Three passes
over the batch cover all operations: lookup tables (per channel value), blends, affine maps. Each
pass leaves the images whose operation is of another kind unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanres.augment.geometry import affine, rotation_matrix

OPS = (  # an operation is an index of this tuple; beside it, the unit of its magnitude
    "identity",
    "shear_x",  # pixels that the origin moves right per row; the top row is fixed
    "shear_y",  # pixels that the origin moves down per column; the left column is fixed
    "translate_x",  # pixels to the right, truncated to an integer
    "translate_y",  # pixels down, truncated to an integer
    "rotate",  # degrees anticlockwise about the centre
    "brightness",  # factor; 0 is black, 1 the identity
    "color",  # factor; 0 is grey, 1 the identity
    "contrast",  # factor; 0 is the mean grey, 1 the identity
    "sharpness",  # factor; 0 is a smoothed image, 1 the identity
    "posterize",  # bits to keep, truncated to an integer
    "solarize",  # threshold: values from it on are inverted
    "autocontrast",
    "equalize",
    "invert",
)


def apply_ops(images: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
    """Apply to each image its operation `OPS[op]` at its magnitude.

    images (N, C, H, W) uint8, op (N,) int64, magnitude (N,) float -> images. Float images are in
    [0, 1]: they are rounded to uint8, changed, and divided by 255 again. Of RGBA images the alpha
    only moves: shears, translations and rotations leave transparent corners. The references are
    Pillow's ImageEnhance, ImageOps, Image.rotate, and Image.transform(AFFINE, NEAREST) with zeros
    outside. Shears fix the top left corner, as in the code of arXiv:1805.09501 and torchvision;
    translations have the sign of torchvision's.
    """
    if images.is_floating_point():
        pixels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return (apply_ops(pixels, op, magnitude).float() / 255).to(images.dtype)
    amount = magnitude.double()
    blended = _blends(_lookup(images[:, :3], op, amount), op, amount)
    if images.shape[1] == 4:
        blended = torch.cat((blended, images[:, 3:]), 1)
    return affine(blended, _matrices(op, amount, *images.shape[2:]))


def _is(op: Tensor, name: str) -> Tensor:
    """Which images have the named operation. int64 -> bool, same shape."""
    return op == OPS.index(name)


def _lookup(images: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """The operations that map each value of a channel to another, wherever it occurs."""
    values = images.flatten(2).long()
    tables = _tables(images, _counts(values), op[:, None, None], amount[:, None, None])
    return tables.gather(2, values).view_as(images)


def _tables(images: Tensor, counts: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """The new value of each value: (N, C, 256) uint8. counts (N, C, 256); op (N, 1, 1)."""
    level = torch.arange(256, device=images.device)
    kept = 255 & -(1 << (8 - amount.long()).clamp(0, 8))  # mask of the bits that posterize keeps
    options = {
        "brightness": blend(torch.zeros_like(level), level, amount),
        "contrast": blend(_mean_luma(images), level, amount),
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
    """base + factor * (pixels - base), clamped and truncated to uint8 as Pillow does, in float32.

    Two integer tensors and a float one, broadcast -> uint8.
    """
    return (base + factor.float() * (pixels - base)).clamp(0, 255).to(torch.uint8)


def _counts(values: Tensor) -> Tensor:
    """Histogram of each channel. (N, C, H * W) int64 -> (N, C, 256) int32."""
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=values.device)
    return counts.scatter_add_(2, values, counts.new_ones(1).expand(values.shape))


def _autocontrast(counts: Tensor, level: Tensor) -> Tensor:
    """Stretch the values that occur to [0, 255]; a single value is kept. -> (N, C, 256)."""
    used = counts > 0
    low = torch.where(used, level, 255).amin(2, keepdim=True)
    high = torch.where(used, level, 0).amax(2, keepdim=True)
    # In float64 and in Pillow's order of terms, or some values would be off by one. full_like,
    # because torch computes number / tensor as number * (1 / tensor).
    spread = (high - low).clamp(min=1).double()
    scale = torch.full_like(spread, 255) / spread
    stretched = (level * scale + -low * scale).clamp(0, 255).long()
    return torch.where(high > low, stretched, level)


def _equalize(counts: Tensor, level: Tensor) -> Tensor:
    """Histogram equalisation, with Pillow's integer steps. -> (N, C, 256)."""
    highest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    below = counts.cumsum(2, dtype=torch.int32)
    step = (below[:, :, -1:] - counts.gather(2, highest)) // 255
    spread = (step // 2 + below - counts) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp(max=255), level)


def _integer_luma(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 in integers, rounded as in Pillow; grey is its own. -> (N, 1, H, W)."""
    pixels = images.int()
    if images.shape[1] == 1:
        return pixels
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _mean_luma(images: Tensor) -> Tensor:
    """Mean luma of each image, halves rounded up. -> (N, 1, 1) int64."""
    luma = _integer_luma(images).flatten(1)
    n = luma.shape[1]
    return ((2 * luma.sum(1) + n) // (2 * n))[:, None, None]


def _blends(images: Tensor, op: Tensor, amount: Tensor) -> Tensor:
    """The operations that blend each image with a grey or a smoothed one."""
    op, amount = op[:, None, None, None], amount[:, None, None, None]
    base = torch.where(_is(op, "color"), _integer_luma(images).to(torch.int16), _smooth(images))
    chosen = _is(op, "color") | _is(op, "sharpness")
    return torch.where(chosen, blend(base, images.to(torch.int16), amount), images)


def _smooth(images: Tensor) -> Tensor:
    """3x3 mean with weight 5 for the centre; the border is kept. uint8 -> int16, same shape.

    The weights sum to 13, an odd number, so no mean is halfway between two integers and integer
    arithmetic rounds exactly.
    """
    pixels = images.to(torch.int16)
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _matrices(op: Tensor, amount: Tensor, height: int, width: int) -> Tensor:
    """The affine map of each image's operation; for most operations the identity. -> (N, 6)."""
    matrix = rotation_matrix(torch.where(_is(op, "rotate"), amount, 0), height, width)
    for column, name in {1: "shear_x", 2: "translate_x", 3: "shear_y", 5: "translate_y"}.items():
        value = amount if name.startswith("shear") else -amount.trunc()
        matrix[:, column] = torch.where(_is(op, name), value, matrix[:, column])
    return matrix
