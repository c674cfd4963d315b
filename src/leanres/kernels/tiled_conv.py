"""Convolutions of small maps on a CPU in bfloat16: several images side by side in one row.

oneDNN's bfloat16 kernel for the gradient of a filter multiplies rows of 32 pixels, however many a
row has: at 4 pixels it does eight times the work. With several images in a row, zeros between them,
its rows are full: 512 -> 512 filters at 4x4 take 26 ms instead of 161 (two cores with AMX).

The layout, for `pitch` input pixels per image and `padding` 1, each image (a, b, c) of width w:

    aaaa0bbbb0cccc0...      one row of input: w pixels, then pitch - w zeros
    AAAA.BBBB.CCCC....      one row of output: pitch / stride places per image; dots are dropped

The zeros after an image are its padding on the right and the next one's on the left, so that no
output of an image sees another. The pitch is a multiple of the stride, so that every image begins
at a whole output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanres.kernels.amx_conv import amx_conv, amx_supports

ROW = 32  # pixels that oneDNN's kernel multiplies at once
MAX_WIDTH = 8  # pixels of an output row, up to which full rows are faster
# The forward pass and the gradient of the input are faster so for large weights on tiny maps only.
LARGE_WEIGHT = 2**20
TINY_WIDTH = 4


@dataclass(frozen=True)
class TileLayout:
    """How images lie side by side."""

    count: int  # images of a row
    pitch: int  # input pixels from one image to the next
    stride: int
    padding: int
    extra: int  # zeros after the last image, so that its outputs have their full pitch too

    def tile(self, maps: Tensor, pitch: int, extra: int = 0) -> Tensor:
        """(N, C, H, W) -> (ceil(N / count), C, H, count * pitch + extra), zeros in the gaps."""
        n, c, h, w = maps.shape
        full_rows, row = n // self.count, self.count * pitch
        pixels = maps.permute(0, 2, 3, 1)
        tiled = maps.new_zeros(-(-n // self.count), h, row + extra, c)
        places = tiled[:, :, :row].view(len(tiled), h, self.count, pitch, c)
        full = pixels[: full_rows * self.count].reshape(full_rows, self.count, h, w, c)
        places[:full_rows, :, :, :w] = full.transpose(1, 2)
        if full_rows < len(tiled):
            left = n - full_rows * self.count
            last = pixels[full_rows * self.count :].transpose(0, 1)
            places[full_rows, :, :left, :w] = last
        return tiled.permute(0, 3, 1, 2)

    def untile(self, tiled: Tensor, n: int, pitch: int, width: int) -> Tensor:
        """The reverse: the first `n` maps, `width` pixels of each; channels last."""
        rows, c, h, _ = tiled.shape
        pixels = tiled.permute(0, 2, 3, 1)[:, :, : self.count * pitch]
        maps = pixels.view(rows, h, self.count, pitch, c)[:, :, :, :width]
        return maps.transpose(1, 2).flatten(0, 1)[:n].permute(0, 3, 1, 2)

    def gradients(self, dy: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]) -> Any:
        """PyTorch's gradients of the convolution's input and weight, as `needed`; None else."""
        stride, padding = [self.stride] * 2, [self.padding] * 2
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [*needed, False]
        )[:2]


def tile_layout(images: Tensor, weight: Tensor, stride: int, padding: int) -> TileLayout | None:
    """How to lay the images of a convolution side by side; None where that is not faster."""
    size, width = weight.shape[-1], images.shape[-1]
    out = (width + 2 * padding - size) // stride + 1
    if size == 1 or weight.shape[-2] != size or not 0 < out <= MAX_WIDTH or len(images) < 2:
        return None
    if 2 * padding >= size:  # an image would have more outputs than its pitch has places
        return None
    pitch = -(-(width + padding) // stride) * stride
    extra = max(0, size - stride - 2 * padding)
    return TileLayout(max(1, ROW // (pitch // stride)), pitch, stride, padding, extra)


class _TiledConv(torch.autograd.Function):
    """A convolution without bias, (N, C, H, W) -> (N, O, H', W'), in bfloat16."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, layout: TileLayout) -> Tensor:
        stride, padding = layout.stride, layout.padding
        out = (images.shape[-1] + 2 * padding - weight.shape[-1]) // stride + 1
        ctx.layout, ctx.n, ctx.width = layout, len(images), images.shape[-1]
        ctx.all_tiled = weight.numel() >= LARGE_WEIGHT and out <= TINY_WIDTH
        if not ctx.all_tiled:
            ctx.save_for_backward(images, weight)
            return F.conv2d(images, weight, None, stride, padding)
        tiled = layout.tile(images, layout.pitch, layout.extra)
        ctx.save_for_backward(tiled, weight)
        maps = F.conv2d(tiled, weight, None, stride, padding)
        return layout.untile(maps, len(images), layout.pitch // stride, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        layout: TileLayout = ctx.layout
        x, weight = ctx.saved_tensors
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        dx, dw = None, None
        if ctx.all_tiled:
            tiled = layout.tile(dy, layout.pitch // layout.stride)
            dx, dw = layout.gradients(tiled, x, weight, (needs_input, needs_weight))
            dx = layout.untile(dx, ctx.n, layout.pitch, ctx.width) if needs_input else None
            return dx, dw, None
        if needs_input:
            dx = layout.gradients(dy, x, weight, (True, False))[0]
        if needs_weight:
            tiled = layout.tile(dy, layout.pitch // layout.stride)
            tiled_x = layout.tile(x, layout.pitch, layout.extra)
            dw = layout.gradients(tiled, tiled_x, weight, (False, True))[1]
        return dx, dw, None


def tiled_convolve(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """A training convolution by AMX or side by side; None where PyTorch's is as fast.

    Only under bfloat16 autocast on a CPU. Values are those of PyTorch's own convolution, up to
    the order in which the gradient of a filter is summed.
    """
    if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return None
    if isinstance(padding, str) or (*dilation, groups) != (1, 1, 1):
        return None
    if stride[0] != stride[1] or padding[0] != padding[1]:
        return None
    if amx_supports(weight, stride, padding, dilation, groups):
        return amx_conv(images, weight)
    layout = tile_layout(images, weight, stride[0], padding[0])
    if layout is None:
        return None
    x, filters = images.to(torch.bfloat16), weight.to(torch.bfloat16)
    out: Tensor = _TiledConv.apply(x, filters, layout)  # type: ignore[no-untyped-call]
    return out
