"""Colour jitter: random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from leanres.augment.rng import Draw, constant, rand, uniform
from leanres.registry import Range

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def color_jitter(
    images: Tensor,
    draw: Draw,
    brightness: Annotated[float, Range(0, 10)] = 0.4,
    contrast: Annotated[float, Range(0, 10)] = 0.4,
    saturation: Annotated[float, Range(0, 10)] = 0.4,
    hue: Annotated[float, Range(0, 0.5)] = 0.1,
) -> Tensor:
    """Change brightness, contrast, saturation and hue, for each image in another random order.

    The first three by factors uniform in [max(0, 1 - b), 1 + b]; hue by a rotation uniform in
    [-hue, hue] turns. Defined as in torchvision's ColorJitter, but computed in floats throughout:
    uint8 images are rounded once, at the end. Grey images have no saturation or hue to change;
    RGBA images keep their alpha. (N, C, H, W) uint8, or float in [0, 1] -> same.
    """
    if images.shape[1] == 4:
        jittered = color_jitter(images[:, :3], draw, brightness, contrast, saturation, hue)
        return torch.cat((jittered, images[:, 3:]), 1)
    if images.shape[1] == 1:
        saturation = hue = 0.0
    strengths = (brightness, contrast, saturation, hue)
    active = tuple(which for which, s in enumerate(strengths) if s)  # the others change nothing
    if not active:
        return images.clone()
    n, peak = len(images), 1.0 if images.is_floating_point() else 255.0
    bounds = [(max(0.0, 1 - s), 1 + s) for s in strengths[:HUE]] + [(-hue, hue)]
    drawn = torch.stack([uniform(*bounds[which], (n,), draw.rng) for which in active], 1)
    order = rand((n, len(active)), draw.rng).argsort(1)  # which comes first, second, ...
    which = constant(active, images.device, torch.int64)[order]
    pixels = images.float() / peak
    for kind, setting in zip(which.unbind(1), drawn.gather(1, order).unbind(1), strict=True):
        pixels = _change(pixels, kind, setting, active)
    pixels = pixels * peak
    return (pixels if images.is_floating_point() else pixels.round()).to(images.dtype)


def _change(pixels: Tensor, which: Tensor, setting: Tensor, active: tuple[int, ...]) -> Tensor:
    """Apply to each image the change `which` (N,), one of `active`, with its `setting` (N,)."""
    which, setting = (v[:, None, None, None] for v in (which, setting))
    # What is blended: factor * pixels + (1 - factor) * base.
    base, factor = torch.zeros_like(setting), setting
    if CONTRAST in active:  # the mean of luma is the luma of the channel means
        base = torch.where(which == CONTRAST, _luma(pixels.mean((2, 3), keepdim=True)), base)
    if SATURATION in active:
        base = torch.where(which == SATURATION, _luma(pixels), base)
    if HUE in active:
        factor = torch.where(which == HUE, 1.0, setting)
    blended = (pixels * factor).add_(base * (1 - factor)).clamp_(0, 1)
    if HUE in active:
        return torch.where(which == HUE, shift_hue(pixels, setting), blended)
    return blended


def _luma(pixels: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, to four digits as in torchvision; grey is its own.

    (N, C, H, W) -> (N, 1, H, W).
    """
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift` turns, keeping HSV's saturation and value.

    (N, 3, H, W) in [0, 1], shift broadcast to it -> same. From HSV to RGB without cases: a channel
    is V - chroma * clamp(min(k, 4 - k), 0, 1), where k = (offset + 6 * hue) mod 6 and the offset is
    5 for red, 3 for green, 1 for blue.
    """
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - low
    hue = _hue(pixels, value, chroma) + 6 * shift
    offsets = constant([[[5.0]], [[3.0]], [[1.0]]], pixels.device, pixels.dtype)
    k = (hue + offsets).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _hue(pixels: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """Hue in sixths of a turn, 0 for greys. (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    divisor = chroma.clamp(min=1e-12)
    if_red, if_green = (green - blue) / divisor, 2 + (blue - red) / divisor
    if_blue = 4 + (red - green) / divisor
    return torch.where(value == red, if_red, torch.where(value == green, if_green, if_blue))
