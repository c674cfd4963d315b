"""Images of the report: PNGs as data URIs for the page, and grids as matplotlib Figures.

Images are uint8 (C, H, W); heat maps are float (h, w), as `metrics.gradcam.explain` returns them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leanres.data.arrays import CHANNELS, as_rgb
from leanres.metrics.gradcam import invalid_map_reasons
from leanres.report.style import new_figure, styled

THUMBNAIL_PX = 64  # longest side of a map, and of an image that a page shows without a click
OWN_PX = 256  # longest side of an embedded image, which a click shows at that size
OPACITY = 0.55  # of a heat map at its maximum: the image stays visible


def data_uri(image: Tensor) -> str:
    """The image as a data URI: up to 64 px a side as it is, a larger one as a JPEG.

    A page holds a hundred of them and has to stay small: above 256 px they are scaled down.
    """
    picture = Image.fromarray(_pixels(image))
    if max(picture.size) <= THUMBNAIL_PX:
        return _png_uri(picture)
    picture.thumbnail((OWN_PX, OWN_PX), Image.Resampling.LANCZOS)
    raw = io.BytesIO()
    picture.save(raw, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(raw.getvalue()).decode()}"


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W, 3)."""
    return as_rgb(image[None].cpu())[0].permute(1, 2, 0).contiguous().numpy()


def _png_uri(picture: Image.Image) -> str:
    raw = io.BytesIO()
    picture.save(raw, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """The image with the heat map drawn over it: (3, 64, 64) uint8.

    The map is enlarged bilinearly and scaled by its own maximum, so brightness can be compared
    within a map but not between maps. Raises ValueError for a map that is blank or not finite.
    """
    (reason,) = invalid_map_reasons(heat[None])
    if reason:
        raise ValueError(f"the map is {reason}: there is nothing to draw")
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    base = F.interpolate(as_rgb(image[None]).float(), side, mode="bilinear", antialias=True)[0]
    large = F.interpolate(heat[None, None].float(), side, mode="bilinear")[0, 0].clamp_min(0)
    strength = large / large.max()
    colors = mpl.colormaps["inferno"](strength.numpy())[..., :3]
    glow = torch.from_numpy(np.ascontiguousarray(colors)).permute(2, 0, 1).float() * 255
    mixed = base + OPACITY * (glow - base)
    return mixed.round().clamp(0, 255).to(torch.uint8)


def mosaic(weights: Tensor, columns: int = 16) -> Tensor:
    """First-layer filters (N, C, k, k) side by side as one image (3, H, W) uint8.

    Each filter is scaled by its largest absolute weight; grey is 0. Gaps of one pixel are grey.
    Of RGBA filters the weights of the colours are drawn. ValueError for another C than 1, 3 or 4.
    """
    if weights.ndim != 4 or weights.shape[1] not in CHANNELS:
        raise ValueError(f"weights of {tuple(weights.shape)}: give (N, C, k, k), C 1, 3 or 4")
    weights = weights.detach().cpu().float()[:, :3].expand(-1, 3, -1, -1)
    peak = weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    tiles = F.pad(0.5 + 0.5 * weights / peak, (0, 1, 0, 1), value=0.5)
    n, _, h, w = tiles.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    filled = torch.cat((tiles, torch.full((rows * columns - n, 3, h, w), 0.5)))
    grid = filled.view(rows, columns, 3, h, w).permute(2, 0, 3, 1, 4).reshape(3, rows * h, -1)
    return (grid * 255).round().to(torch.uint8)


def enlarged(image: Tensor, least: int = 320) -> str:
    """A small image as a data URI of a PNG, enlarged to about `least` pixels, without smoothing."""
    factor = max(1, round(least / image.shape[2]))
    return _png_uri(Image.fromarray(_pixels(image).repeat(factor, 0).repeat(factor, 1)))


@styled
def image_grid(
    images: Tensor | Sequence[Tensor],
    captions: Sequence[str] = (),
    columns: int = 8,
    side: int = 72,
) -> Figure:
    """Images (C, H, W) uint8 in a grid in reading order, about `side` px each, with captions."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    text = 14 * (1 + max((caption.count("\n") for caption in captions), default=-1))
    figure = new_figure((side + 8) * columns, (side + 8 + text) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place < len(images):
            axes.imshow(_pixels(images[place]), interpolation="nearest")
        if place < len(captions):
            axes.set_title(captions[place], fontsize=8)
    return figure


@styled
def heat_maps(
    images: Tensor, maps: Tensor, captions: Sequence[str] = (), columns: int = 8
) -> Figure:
    """Images (N, C, H, W) uint8 with their Grad-CAM maps (N, h, w) drawn over them.

    An image whose map is blank or not finite is shown without it, and its caption says so.
    """
    reasons = invalid_map_reasons(maps)
    names = list(captions) or [""] * len(images)
    names = [f"{name}\n({why})" if why else name for name, why in zip(names, reasons, strict=True)]
    drawn = [
        image if why else overlay(image, heat)
        for image, heat, why in zip(images.cpu(), maps.cpu(), reasons, strict=True)
    ]
    return image_grid(drawn, names, columns)


@styled
def filters(weights: Tensor, columns: int = 16) -> Figure:
    """First-layer filters (N, C, k, k), each scaled by its largest absolute weight; grey is 0."""
    return image_grid([mosaic(weights, columns)], columns=1, side=420)
