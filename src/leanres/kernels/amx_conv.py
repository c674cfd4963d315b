"""3x3 convolutions on a CPU with AMX, by `csrc/amx_conv.c`: stride 1, padding 1, in bfloat16.

oneDNN's gradient of a filter takes 32 pixels of a row at once, however many a row has: it is half
as fast as the one here at best, and a tenth on small maps. Its forward pass and its gradient of the
input are as fast or faster on long rows, and are used beyond `MAX_WIDTH` pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanres.kernels.build import call, has_amx, to_bf16_channels_last

MAX_WIDTH = 15  # pixels of a row


def amx_supports(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether `amx_conv` computes a convolution of this geometry on this machine."""
    geometry = (*weight.shape[2:], *stride, *padding, *dilation, groups)
    return geometry == (3, 3, 1, 1, 1, 1, 1, 1, 1) and has_amx()


def amx_conv(images: Tensor, weight: Tensor) -> Tensor:
    """The convolution of images (N, C, H, W) with a weight (O, C, 3, 3) that `amx_supports`.

    (N, O, H, W) bfloat16. The gradient of the weight is float32.
    """
    out: Tensor = _AMXConv.apply(images, weight)  # type: ignore[no-untyped-call]
    return out


class _AMXConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        x, filters = to_bf16_channels_last(images), as_filters(weight)
        ctx.save_for_backward(x, filters)
        if x.shape[3] > MAX_WIDTH:
            return F.conv2d(x, to_bf16_channels_last(filters), padding=1)
        return _conv3x3(x, None, filters, *x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, filters), dy = ctx.saved_tensors, to_bf16_channels_last(gradient)
        needs_input, needs_weight = ctx.needs_input_grad
        return (
            grad_input(dy, None, filters, *x.shape[2:]) if needs_input else None,
            grad_weight(x, dy, None) if needs_weight else None,
        )


def as_filters(weight: Tensor) -> Tensor:
    """A weight (O, C, 3, 3) as the kernels take it: float32, which they round to bfloat16."""
    return weight.detach().float().contiguous(memory_format=torch.channels_last)


def conv_maxpool(x: Tensor, filters: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The 2x2 max-pool of the convolution of x (N, C, H, W) with `filters` (O, C, 3, 3).

    Returns it, (N, O, H // 2, W // 2) bfloat16, and the place of each maximum, as many bytes from
    0 to 3. Its sums are added to `sums`, (threads, 2, O) float64, as by `max_pool` of `fused.c`.
    """
    (n, c, h, w), o = x.shape, len(filters)
    y = x.new_empty(n, h // 2, w // 2, o).permute(0, 3, 1, 2)
    argmax = torch.empty(y.numel(), dtype=torch.uint8)
    call("amx_conv3x3", x, None, filters, 0, n, h, w, c, o, y, argmax, sums)
    return y, argmax


def grad_input(dy: Tensor, argmax: Tensor | None, filters: Tensor, h: int, w: int) -> Tensor:
    """The gradient of the input, (N, C, h, w) bfloat16, from the gradient `dy` of the result.

    With `argmax`, `dy` is the gradient of the result of `conv_maxpool`.
    """
    if argmax is None and w > MAX_WIDTH:
        rotated = filters.flip(2, 3).transpose(0, 1)
        return F.conv2d(dy, to_bf16_channels_last(rotated), padding=1)
    return _conv3x3(dy, argmax, filters, h, w, rotated=True)


def grad_weight(x: Tensor, dy: Tensor, argmax: Tensor | None) -> Tensor:
    """The gradient of the filters, (O, C, 3, 3) float32; `dy` and `argmax` as of `grad_input`."""
    (n, c, h, w), o = x.shape, dy.shape[1]
    out = torch.empty(o, 3, 3, c).permute(0, 3, 1, 2)
    call("amx_conv3x3_grad_weight", x, dy, argmax, n, h, w, c, o, out)
    return out


def _conv3x3(
    x: Tensor, argmax: Tensor | None, filters: Tensor, h: int, w: int, rotated: bool = False
) -> Tensor:
    n, c, o = len(x), x.shape[1], filters.shape[1 if rotated else 0]
    y = x.new_empty(n, h, w, o).permute(0, 3, 1, 2)
    call("amx_conv3x3", x, argmax, filters, rotated, n, h, w, c, o, y, None, None)
    return y
