"""Colour: grey values, blends, shifts of hue, and the augmentation that draws them."""

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
    """Change brightness, contrast, saturation and hue in an order of each image's own.

    The first three by factors uniform in [max(0, 1 - b), 1 + b]; hue by a share of the circle
    uniform in [-hue, hue]. Definitions as torchvision's ColorJitter, in floats from first to
    last: bytes are rounded once, at the end. (N, 3, H, W) bytes, or floats in [0, 1] -> same.
    """
    reach = (brightness, contrast, saturation, hue)
    active = tuple(which for which, r in enumerate(reach) if r)  # the others change nothing
    if not active:
        return images.clone()
    n, peak = len(images), 1.0 if images.is_floating_point() else 255.0
    bounds = [(max(0.0, 1 - r), 1 + r) for r in reach[:HUE]] + [(-hue, hue)]
    drawn = torch.stack([uniform(*bounds[which], (n,), draw.rng) for which in active], 1)
    order = rand((n, len(active)), draw.rng).argsort(1)  # which comes first, second, ...
    which = constant(active, images.device, torch.int64)[order]
    pixels = images.float() / peak
    for kind, setting in zip(which.unbind(1), drawn.gather(1, order).unbind(1), strict=True):
        pixels = _change(pixels, kind, setting, active)
    pixels = pixels * peak
    return (pixels if images.is_floating_point() else pixels.round()).to(images.dtype)


def _change(pixels: Tensor, which: Tensor, setting: Tensor, active: tuple[int, ...]) -> Tensor:
    """Change `which` (N,), one of `active`, for each image."""
    which, setting = (v[:, None, None, None] for v in (which, setting))
    base, factor = torch.zeros_like(setting), setting  # what is blended with, and how much stays
    if CONTRAST in active:  # the mean luma is the luma of the means
        base = torch.where(which == CONTRAST, _grey(pixels.mean((2, 3), keepdim=True)), base)
    if SATURATION in active:
        base = torch.where(which == SATURATION, _grey(pixels), base)
    if HUE in active:
        factor = torch.where(which == HUE, 1.0, setting)
    blended = (pixels * factor).add_(base * (1 - factor)).clamp_(0, 1)
    if HUE in active:
        return torch.where(which == HUE, shift_hue(pixels, setting), blended)
    return blended


def _grey(pixels: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, with torchvision's four digits. (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` circles, keeping HSV's saturation and value.

    (N, 3, H, W) in [0, 1], shift broadcast to it -> same. In HSV a channel is V less the chroma
    times a trapezium of the hue, at its own place on the circle: red 5, green 3, blue 1 sixths.
    """
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - low
    turned = _hue(pixels, value, chroma) + 6 * shift
    places = constant([[[5.0]], [[3.0]], [[1.0]]], pixels.device, pixels.dtype)
    k = (turned + places).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _hue(pixels: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """Hue in sixths of the circle, 0 for greys. (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    by = chroma.clamp(min=1e-12)
    if_red, if_green = (green - blue) / by, 2 + (blue - red) / by
    if_blue = 4 + (red - green) / by
    return torch.where(value == red, if_red, torch.where(value == green, if_green, if_blue))
