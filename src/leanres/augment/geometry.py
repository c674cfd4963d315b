"""Augmentations that move pixels: crops, mirrors, rotation, perspective; affine maps.

Each takes uint8 or float images (N, C, H, W) and a `Draw`, returns new images and leaves its
input alone. Places are in pixels from the top left corner, so centres of pixels are at halves.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanres.augment.rng import Draw, constant, rand, randint, uniform
from leanres.errors import UserError
from leanres.registry import Range

Interpolation = Literal["bilinear", "nearest"]


def crop(
    images: Tensor,
    draw: Draw,
    padding: Annotated[int, Range(0, 1024)] = 4,
    mode: Literal["constant", "reflect"] = "constant",
) -> Tensor:
    """Pad every side by `padding` pixels, cut the original size at a random place.

    mode: "constant" (zeros) or "reflect". (N, C, H, W) -> same.
    """
    n, _, h, w = images.shape
    padded = F.pad(_as_float_if_needed(images, mode), (padding,) * 4, mode=mode).to(images.dtype)
    y, x = randint(2 * padding + 1, (2, n), draw.rng)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(n, device=images.device), :, y, x]


def _as_float_if_needed(images: Tensor, mode: str) -> Tensor:
    # Reflection is not implemented for bytes; float32 holds every byte exactly.
    return images.float() if mode == "reflect" and not images.is_floating_point() else images


def flip(images: Tensor, draw: Draw, p: Annotated[float, Range(0, 1)] = 0.5) -> Tensor:
    """Mirror each image left to right with probability p. (N, C, H, W) -> same."""
    return _mirror(images, rand((len(images),), draw.rng) < p)


def vertical_flip(images: Tensor, draw: Draw, p: Annotated[float, Range(0, 1)] = 0.5) -> Tensor:
    """Turn each image upside down, as a mirror does, with probability p. (N, C, H, W) -> same."""
    return _mirror(images, rand((len(images),), draw.rng) < p, side=-2)


def alternating_flip(images: Tensor, draw: Draw) -> Tensor:
    """Mirror a fixed random half of the images in even epochs and the other half in odd ones.

    Two successive epochs thus show both faces of every image, which a fresh coin does only in
    half the cases. (N, C, H, W) -> same. arXiv:2404.00498, section 3.6.
    """
    if draw.indices is None:
        raise UserError("alternating_flip needs Draw.indices, the images' places in the split")
    coins = _coin(draw.indices, draw.seed)
    return _mirror(images, coins ^ bool(draw.epoch % 2))


def _coin(indices: Tensor, seed: int) -> Tensor:
    # A Bernoulli(1/2) that depends on image and seed alone: one bit of a 64-bit mix (splitmix64's
    # multipliers, wrapped to int64), so no table as long as the split has to be kept.
    z = indices + (seed + 1) * 0x1E3779B97F4A7C15 % 2**63
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return ((z ^ (z >> 31)) & 1).bool()


def _mirror(images: Tensor, mask: Tensor, side: int = -1) -> Tensor:
    return torch.where(mask[:, None, None, None], images.flip(side), images)


def rotation(
    images: Tensor,
    draw: Draw,
    degrees: Annotated[float, Range(0, 360)] = 15.0,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Turn each image about its centre by an angle uniform in [-degrees, degrees]; zeros around.

    interpolation: "bilinear" (zeros blend in at the edge) or "nearest" (equal to Pillow's).
    (N, C, H, W) -> same.
    """
    angle = uniform(-degrees, degrees, (len(images),), draw.rng)
    matrix = rotation_matrix(angle, *images.shape[2:])
    if interpolation == "nearest":
        return affine(images, matrix)
    projective = F.pad(F.pad(matrix, (0, 2)), (0, 1), value=1.0)  # a depth of 1 everywhere
    return sample(images, *_project(projective, images), interpolation)


def rotation_matrix(angle: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of an image turned by `angle` come from, anticlockwise about its centre.

    (N,) degrees -> (N, 6) float64: a place (x, y) shows (m0 x + m1 y + m2, m3 x + m4 y + m5).
    """
    radians = angle.double().deg2rad()
    cos, sin = radians.cos(), radians.sin()
    x, y = width / 2, height / 2
    rows = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return torch.stack(rows, dim=1)


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """The nearest pixel of each place's origin under `matrix` (N, 6); zero where there is none.

    (N, C, H, W) -> same. Equal to Pillow's Image.transform(AFFINE, NEAREST), which counts in
    1/65536 of a pixel.
    """
    h, w = images.shape[2:]
    a, b, c, d, e, f = matrix.double().unbind(1)
    starts = (c + (a + b) / 2, f + (d + e) / 2)  # the centre of the first pixel
    x, y = (
        (_fixed(start) + _fixed(right) * _range(w, images) + _fixed(down) * _column(h, images))
        for start, right, down in zip(starts, (a, d), (b, e), strict=True)
    )
    return _pick(images, x >> 16, y >> 16)


def _fixed(value: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1) int64, in 1/65536, rounded."""
    return (value * 65536 + 0.5).floor().long()[:, None, None]


def _range(n: int, images: Tensor) -> Tensor:
    return torch.arange(n, device=images.device)


def _column(n: int, images: Tensor) -> Tensor:
    return _range(n, images)[:, None]


def _pick(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Pixel (x, y) for each place, (N, H, W) int64; zero where the image has none."""
    channels, h, w = images.shape[1:]
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    source = torch.where(inside, y * w + x, 0).flatten(1)
    picked = images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1))
    return picked.view_as(images).masked_fill(~inside[:, None], 0)


def perspective(
    images: Tensor,
    draw: Draw,
    distortion: Annotated[float, Range(0, 1)] = 0.6,
    p: Annotated[float, Range(0, 1)] = 0.5,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """See each image askew with probability p; zeros around. (N, C, H, W) -> same.

    Every corner moves inward, on each axis by whole pixels, uniform from 0 to distortion * half
    the side: torchvision's RandomPerspective. interpolation: "bilinear" or "nearest".
    """
    n, _, h, w = images.shape
    reach = [int(distortion * (side // 2)) + 1 for side in (w, h)]
    x, y = (randint(high, (n, 4), draw.rng) for high in reach)
    seen = sample(images, *_project(_homography(x, y, h, w), images), interpolation)
    chosen = rand((n,), draw.rng) < p
    return torch.where(chosen[:, None, None, None], seen, images)


def _homography(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """The map back to the image's corners from corners moved inward by x, y (N, 4), clockwise.

    -> (N, 9) float64, up to a factor. Heckbert 1989, "Fundamentals of texture mapping", 2.2.3,
    gives the map from the unit square to a quadrilateral; its adjugate leads back.
    """
    right, bottom = width - 1, height - 1
    x0, x1, x2, x3 = (x * _whole((1, -1, -1, 1), x) + _whole((0, right, right, 0), x)).unbind(1)
    y0, y1, y2, y3 = (y * _whole((1, 1, -1, -1), y) + _whole((0, 0, bottom, bottom), y)).unbind(1)
    sum_x, sum_y = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    g = sum_x * (y3 - y2) - (x3 - x2) * sum_y
    h = (x1 - x2) * sum_y - sum_x * (y1 - y2)
    scale = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    first = torch.stack(((x1 - x0) * scale + g * x1, (x3 - x0) * scale + h * x3, x0 * scale), 1)
    second = torch.stack(((y1 - y0) * scale + g * y1, (y3 - y0) * scale + h * y3, y0 * scale), 1)
    third = torch.stack((g, h, scale), 1)
    columns = (second.cross(third, 1), third.cross(first, 1), first.cross(second, 1))
    back = torch.stack(columns, 2).double()  # whole numbers so far, so this is exact
    return (back * constant([[right], [bottom], [1]], x.device, torch.float64)).flatten(1)


def _whole(values: tuple[int, ...], like: Tensor) -> Tensor:
    return constant(values, like.device, torch.int64)


def _project(matrix: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Origin of each pixel's centre under a projective map (N, 9). -> x, y (N, H, W) float64."""
    h, w = images.shape[2:]
    m = matrix[:, :, None, None].unbind(1)
    x, y = _range(w, images) + 0.5, _column(h, images) + 0.5
    depth = m[6] * x + m[7] * y + m[8]
    return (m[0] * x + m[1] * y + m[2]) / depth, (m[3] * x + m[4] * y + m[5]) / depth


def sample(images: Tensor, x: Tensor, y: Tensor, interpolation: str) -> Tensor:
    """The images at places x, y (N, H, W) in pixels; zeros outside. (N, C, H, W) -> same."""
    h, w = images.shape[2:]
    # a place that a map sends to infinity is outside, like any other far away
    x, y = (v.nan_to_num(-2).clamp(-2, side + 2) for v, side in ((x, w), (y, h)))
    if interpolation == "nearest":
        return _pick(images, x.floor().long(), y.floor().long())
    grid = torch.stack((2 * x / w - 1, 2 * y / h - 1), dim=-1).float()
    found = F.grid_sample(images.float(), grid, align_corners=False)
    return (found if images.is_floating_point() else found.round()).to(images.dtype)
