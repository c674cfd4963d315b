"""Colour: grey values, blends, shifts of hue, and the augmentation that draws them."""

from __future__ import annotations

import torch
from torch import Tensor

from leanres.data.draw import Draw, constant, rand, uniform


def color_jitter(
    images: Tensor,
    draw: Draw,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Tensor:
    """Change brightness, contrast, saturation and hue in an order of each image's own.

    The first three by factors uniform in [max(0, 1 - b), 1 + b]; hue by a share of the circle
    uniform in [-hue, hue]. Definitions as torchvision's ColorJitter, in floats from first to
    last: bytes are rounded once, at the end. (N, 3, H, W) bytes, or floats in [0, 1] -> same.
    """
    n, peak = len(images), 1.0 if images.is_floating_point() else 255.0
    reach = (brightness, contrast, saturation)
    factors = [uniform(max(0.0, 1 - r), 1 + r, (n,), draw.rng) for r in reach]
    shift = uniform(-hue, hue, (n,), draw.rng)
    order = rand((n, 4), draw.rng).argsort(1)  # (N, 4): which change comes first, second, ...
    settings = torch.stack((*factors, shift), 1).gather(1, order)
    pixels = images.float() / peak
    for which, setting in zip(order.unbind(1), settings.unbind(1), strict=True):
        pixels = _change(pixels, which, setting, hue != 0)
    pixels = pixels * peak
    return (pixels if images.is_floating_point() else pixels.round()).to(images.dtype)


def _change(pixels: Tensor, which: Tensor, setting: Tensor, turn: bool) -> Tensor:
    """Change `which` (N,) of 0 to 3 for each image: brightness, contrast, saturation or hue."""
    which, setting = (v[:, None, None, None] for v in (which, setting))
    grey = _grey(pixels)
    flat = torch.where(which == 1, grey.mean((2, 3), keepdim=True), torch.zeros_like(grey))
    base = torch.where(which == 2, grey, flat)
    factor = torch.where(which == 3, 1.0, setting)
    blended = (base + factor * (pixels - base)).clamp(0, 1)
    return torch.where(which == 3, shift_hue(pixels, setting), blended) if turn else blended


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
