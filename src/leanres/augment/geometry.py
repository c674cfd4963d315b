"""Geometric augmentations: crops, flips, rotation, perspective; affine maps.

Coordinates are in pixels from the top left corner, so the centre of the first pixel is (0.5, 0.5).
Each output pixel takes its value from its origin, the point that the inverse map sends it to.
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
    """Pad every side by `padding` pixels, then crop the original size at a random position.

    mode: "constant" (zeros) or "reflect". (N, C, H, W) -> same.
    """
    n, _, h, w = images.shape
    # Reflection is not implemented for uint8; float32 represents every byte exactly.
    values = images.float() if mode == "reflect" and images.dtype == torch.uint8 else images
    padded = F.pad(values, (padding,) * 4, mode=mode).to(images.dtype)
    y, x = randint(2 * padding + 1, (2, n), draw.rng)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(n, device=images.device), :, y, x]


def flip(images: Tensor, draw: Draw, p: Annotated[float, Range(0, 1)] = 0.5) -> Tensor:
    """Flip each image left to right with probability p. (N, C, H, W) -> same."""
    return _flip_where(images, rand((len(images),), draw.rng) < p)


def vertical_flip(images: Tensor, draw: Draw, p: Annotated[float, Range(0, 1)] = 0.5) -> Tensor:
    """Flip each image top to bottom with probability p. (N, C, H, W) -> same."""
    return _flip_where(images, rand((len(images),), draw.rng) < p, axis=-2)


def alternating_flip(images: Tensor, draw: Draw) -> Tensor:
    """Flip a fixed random half of the images in even epochs, and the other half in odd ones.

    Two successive epochs show every image in both orientations; independent random flips do so
    only half of the time. (N, C, H, W) -> same. arXiv:2404.00498, section 3.6.
    """
    if draw.indices is None:
        raise UserError("alternating_flip needs Draw.indices, the images' positions in the split")
    in_even_epochs = _hash_bit(draw.indices, draw.seed)
    return _flip_where(images, in_even_epochs ^ bool(draw.epoch % 2))


def _hash_bit(indices: Tensor, seed: int) -> Tensor:
    # One bit of a 64-bit hash of image and seed (splitmix64's multipliers, wrapped to int64): a
    # fair coin per image without a table of the whole split.
    z = indices + (seed + 1) * 0x1E3779B97F4A7C15 % 2**63
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return ((z ^ (z >> 31)) & 1).bool()


def _flip_where(images: Tensor, mask: Tensor, axis: int = -1) -> Tensor:
    return torch.where(mask[:, None, None, None], images.flip(axis), images)


def rotation(
    images: Tensor,
    draw: Draw,
    degrees: Annotated[float, Range(0, 360)] = 15.0,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Rotate each image about its centre by an angle uniform in [-degrees, degrees]; zeros outside.

    interpolation: "bilinear" (blends with zeros at the borders) or "nearest" (equal to Pillow's).
    (N, C, H, W) -> same.
    """
    angle = uniform(-degrees, degrees, (len(images),), draw.rng)
    matrix = rotation_matrix(angle, *images.shape[2:])
    if interpolation == "nearest":
        return affine(images, matrix)
    projective = F.pad(F.pad(matrix, (0, 2)), (0, 1), value=1.0)  # the third row is (0, 0, 1)
    return sample(images, *_origins(projective, images), interpolation)


def rotation_matrix(angle: Tensor, height: int, width: int) -> Tensor:
    """The affine map from an image, rotated anticlockwise about its centre, back to the original.

    (N,) degrees -> (N, 6) float64: the origin of (x, y) is (m0 x + m1 y + m2, m3 x + m4 y + m5).
    """
    radians = angle.double().deg2rad()
    cos, sin = radians.cos(), radians.sin()
    x, y = width / 2, height / 2
    rows = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return torch.stack(rows, dim=1)


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """For each output pixel, the pixel nearest to its origin under `matrix` (N, 6); zero outside.

    (N, C, H, W) -> same. Equal to Pillow's Image.transform(AFFINE, NEAREST), which computes in
    fixed-point units of 1/65536 pixel.
    """
    a, b, c, d, e, f = matrix.double().unbind(1)
    starts = (c + (a + b) / 2, f + (d + e) / 2)  # origin of the first pixel's centre
    columns, rows = _pixel_indices(images)
    x, y = (
        _fixed(start) + _fixed(right) * columns + _fixed(down) * rows
        for start, right, down in zip(starts, (a, d), (b, e), strict=True)
    )
    return _pick(images, x >> 16, y >> 16)


def _fixed(value: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1) int64 in units of 1/65536, rounded."""
    return (value * 65536 + 0.5).floor().long()[:, None, None]


def _pixel_indices(images: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (W,) and rows (H, 1)."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    return columns, rows[:, None]


def _pick(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The pixels at columns x and rows y, (N, H, W) int64; zero outside. (N, C, H, W) -> same."""
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
    """Distort the perspective of each image with probability p; zeros outside.

    Every corner moves inward on each axis by an integer number of pixels, uniform from 0 to
    distortion * half the side, as in torchvision's RandomPerspective. interpolation: "bilinear" or
    "nearest". (N, C, H, W) -> same.
    """
    n, _, h, w = images.shape
    limits = [int(distortion * (side // 2)) + 1 for side in (w, h)]
    x, y = (randint(limit, (n, 4), draw.rng) for limit in limits)
    distorted = sample(images, *_origins(_homography(x, y, h, w), images), interpolation)
    chosen = rand((n,), draw.rng) < p
    return torch.where(chosen[:, None, None, None], distorted, images)


def _homography(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """The projective map from corners moved inward by x, y (N, 4), clockwise, to the original ones.

    -> (N, 9) float64, up to a factor. Heckbert 1989, "Fundamentals of texture mapping", 2.2.3,
    gives the map from the unit square to a quadrilateral; its adjugate is the inverse map.
    """
    right, bottom = width - 1, height - 1
    x0, x1, x2, x3 = x[:, 0], right - x[:, 1], right - x[:, 2], x[:, 3]
    y0, y1, y2, y3 = y[:, 0], y[:, 1], bottom - y[:, 2], bottom - y[:, 3]
    sum_x, sum_y = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    g = sum_x * (y3 - y2) - (x3 - x2) * sum_y
    h = (x1 - x2) * sum_y - sum_x * (y1 - y2)
    scale = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    first = torch.stack(((x1 - x0) * scale + g * x1, (x3 - x0) * scale + h * x3, x0 * scale), 1)
    second = torch.stack(((y1 - y0) * scale + g * y1, (y3 - y0) * scale + h * y3, y0 * scale), 1)
    third = torch.stack((g, h, scale), 1)
    columns = (second.cross(third, 1), third.cross(first, 1), first.cross(second, 1))
    adjugate = torch.stack(columns, 2).double()  # integers so far, so this is exact
    return (adjugate * constant([[right], [bottom], [1]], x.device, torch.float64)).flatten(1)


def _origins(matrix: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Origin of each pixel's centre under a projective map (N, 9). -> x, y (N, H, W) float64."""
    m = matrix[:, :, None, None].unbind(1)
    x, y = (index + 0.5 for index in _pixel_indices(images))
    depth = m[6] * x + m[7] * y + m[8]
    return (m[0] * x + m[1] * y + m[2]) / depth, (m[3] * x + m[4] * y + m[5]) / depth


def sample(images: Tensor, x: Tensor, y: Tensor, interpolation: str) -> Tensor:
    """Interpolate the images at points x, y (N, H, W) in pixels; zeros outside. -> (N, C, H, W)."""
    h, w = images.shape[2:]
    # A point at infinity is outside, like any other far away.
    x, y = (v.nan_to_num(-2).clamp(-2, side + 2) for v, side in ((x, w), (y, h)))
    if interpolation == "nearest":
        return _pick(images, x.floor().long(), y.floor().long())
    grid = torch.stack((2 * x / w - 1, 2 * y / h - 1), dim=-1).float()
    found = F.grid_sample(images.float(), grid, align_corners=False)
    return (found if images.is_floating_point() else found.round()).to(images.dtype)
