"""3x3 convolutions of stride 1 on a CPU in float32, by `csrc/winograd.c`.

Winograd's F(4x4, 3x3) takes 36 products for 16 outputs where a sum over taps takes 144; each of the
36 is a product of matrices over channels. The head of `winograd.c` has its transforms. Lavin and
Gray 2016, https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from leanres.kernels.build import call, constant, library

POINTS = 36  # elements of a transformed tile
MIN_CHANNELS = 24  # of input and output together; below, oneDNN is as fast
MIN_SIDE = 3  # pixels of the output; below, tiles of 4x4 save no products


@cache
def _filter_transform() -> Tensor:
    """(36, 9): a filter's 9 taps to its values at the 36 points, G g G' as one matrix."""
    rows = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    one_side = torch.tensor(rows, dtype=torch.float64) / 24
    return torch.kron(one_side, one_side).float()


def winograd_convolve(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """The convolution by `winograd_conv`; None where it cannot, or oneDNN's is as fast.

    None within a mode that watches PyTorch's operators, to count or to trace them.
    """
    geometry = (*weight.shape[2:], *stride, *dilation, groups)
    if geometry != (3, 3, 1, 1, 1, 1, 1) or isinstance(padding, str) or images.ndim != 4:
        return None
    pad = padding[0]
    if padding[1] != pad or pad > 2 or min(images.shape[2:]) + 2 * pad - 2 < MIN_SIDE:
        return None
    in_float32 = images.dtype == weight.dtype == torch.float32 and images.device.type == "cpu"
    faster = sum(weight.shape[:2]) >= MIN_CHANNELS and len(images) > 0
    if not (in_float32 and faster) or library() is None or _get_current_dispatch_mode() is not None:
        return None
    return winograd_conv(images, weight, pad)


def winograd_conv(images: Tensor, weight: Tensor, pad: int) -> Tensor:
    """The convolution of images (N, C, H, W) with a weight (O, C, 3, 3), both float32.

    (N, O, H + 2 pad - 2, W + 2 pad - 2). MemoryError where its buffers do not fit.
    """
    out: Tensor = _WinogradConv.apply(images, weight, pad)  # type: ignore[no-untyped-call]
    return out


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, pad: int) -> Tensor:
        x, ctx.pad = _channels_last(images), pad
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), dy = ctx.saved_tensors, _channels_last(gradient)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        return (
            _multiply(dy, weight, 2 - ctx.pad, rotated=True) if needs_input else None,
            _grad_weight(x, dy, ctx.pad) if needs_weight else None,
            None,
        )


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _multiply(x: Tensor, weight: Tensor, pad: int, rotated: bool = False) -> Tensor:
    """The convolution of x (N, C, H, W), `pad` zeros around it, with a weight (O, C, 3, 3).

    `rotated`: with the weight rotated by half a turn and its channels exchanged, which takes a
    gradient of the result to the gradient of the input.
    """
    columns = constant("columns_at_once")  # output channels of a panel, which are stored together
    taps = weight.flip(2, 3).permute(2, 3, 0, 1) if rotated else weight.permute(2, 3, 1, 0)
    (n, _, h, w), (c, o) = x.shape, taps.shape[2:]
    panels = F.pad(taps, (0, -o % columns)).reshape(9, c, -1, columns).transpose(1, 2)
    filters = _filter_transform() @ panels.reshape(9, -1)
    y = x.new_empty(n, h + 2 * pad - 2, w + 2 * pad - 2, o).permute(0, 3, 1, 2)
    if call("winograd", x, n, h, w, c, pad, filters, o, y):
        raise MemoryError
    return y


def _grad_weight(x: Tensor, dy: Tensor, pad: int) -> Tensor:
    """The gradient of the weight, (O, C, 3, 3) channels last."""
    (n, c, h, w), o, threads = x.shape, dy.shape[1], torch.get_num_threads()
    rows, columns = constant("rows_at_once"), constant("columns_at_once")
    c_padded, o_padded = -(-c // rows) * rows, -(-o // columns) * columns
    sums = x.new_empty(threads * POINTS, c_padded * o_padded)
    if call("winograd_grad_weight", x, dy, n, h, w, c, pad, o, sums):
        raise MemoryError
    taps = _filter_transform().T.repeat(1, threads) @ sums  # adds up the threads' parts as well
    return _channels_last(taps.view(3, 3, c_padded, o_padded)[:, :, :c, :o].permute(3, 2, 0, 1))
