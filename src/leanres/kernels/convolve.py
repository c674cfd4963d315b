"""3x3 convolutions on a CPU with AMX, by `convolve.c`: stride 1, padding 1, in bfloat16.

oneDNN's gradient of a filter is half as fast at best, and a tenth where maps are small: it takes 32
pixels of a row at once, whatever a row has. Its other two passes are as fast as those here, or
faster, where rows are long: beyond `WIDTH` pixels they are its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanres.kernels.build import as_ctypes, has_tiles, kernels, to_bf16_channels_last

WIDTH = 15


def fits(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether a convolution is of the kind that is done here, and this machine does it."""
    kind = (*weight.shape[2:], *stride, *padding, *dilation, groups)
    return kind == (3, 3, 1, 1, 1, 1, 1, 1, 1) and has_tiles()


def filters_of(weight: Tensor) -> Tensor:
    """Filters (O, I, 3, 3) as the kernels take them: float32, rounded where they are multiplied."""
    return weight.detach().float().contiguous(memory_format=torch.channels_last)


def conv_maxpool(x: Tensor, filters: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maxima of the convolution of x (N, C, H, W), and which of the four each was, as bytes.

    Their sums are added to `sums`, (threads, 2, O) float64, as those of `fused.c`.
    """
    lib, threads = kernels()
    (n, c, h, w), o = x.shape, len(filters)
    y = x.new_empty(n, h // 2, w // 2, o).permute(0, 3, 1, 2)
    where = torch.empty(y.numel(), dtype=torch.uint8)
    lib.convolve(*as_ctypes(x, None, filters, 0, n, h, w, c, o, y, where, sums, threads))
    return y, where


def grad_input(g: Tensor, where: Tensor | None, filters: Tensor, h: int, w: int) -> Tensor:
    """The gradient by the images (N, C, H, W), of the gradient g by the convolution's result.

    With `where` g is by the maxima of `pooled`.
    """
    return _product(g, where, filters, h, w, turned=True)


def grad_weight(x: Tensor, g: Tensor, where: Tensor | None) -> Tensor:
    """The gradient by the filters, (O, C, 3, 3) float32, channels last; g and `where` as above."""
    lib, threads = kernels()
    (n, c, h, w), o = x.shape, g.shape[1]
    out = torch.empty(o, 3, 3, c).permute(0, 3, 1, 2)
    lib.convolve_filters(*as_ctypes(x, g, where, n, h, w, c, o, out, threads))
    return out


def _product(
    maps: Tensor, where: Tensor | None, filters: Tensor, h: int, w: int, turned: bool = False
) -> Tensor:
    if where is None and w > WIDTH:
        by = filters.flip(2, 3).transpose(0, 1) if turned else filters
        return F.conv2d(maps, to_bf16_channels_last(by), padding=1)
    lib, threads = kernels()
    n, c, o = len(maps), maps.shape[1], filters.shape[1 if turned else 0]
    y = maps.new_empty(n, h, w, o).permute(0, 3, 1, 2)
    lib.convolve(*as_ctypes(maps, where, filters, turned, n, h, w, c, o, y, None, None, threads))
    return y


class _Convolve(torch.autograd.Function):
    """(N, C, H, W) -> (N, O, H, W), without bias."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        x, filters = to_bf16_channels_last(images), filters_of(weight)
        ctx.save_for_backward(x, filters)
        return _product(x, None, filters, *x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, filters), g = ctx.saved_tensors, to_bf16_channels_last(gradient)
        wanted = ctx.needs_input_grad
        return (
            grad_input(g, None, filters, *x.shape[2:]) if wanted[0] else None,
            grad_weight(x, g, None) if wanted[1] else None,
        )


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    """The convolution of images (N, C, H, W) with a weight (O, C, 3, 3) that `fits`, in bfloat16.

    The gradient by the weight is float32.
    """
    out: Tensor = _Convolve.apply(images, weight)  # type: ignore[no-untyped-call]
    return out
