"""3x3 convolutions on a CPU in float32, stride 1, by `winograd.c`.

Winograd's F(4x4, 3x3) takes 36 products of channels for 16 results, where a sum over the taps takes
144; each is a product of matrices. Lavin and Gray 2016, https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from leanres.kernels.build import as_ctypes, has_fma, kernels

POINTS = 36
NARROW = 24  # channels, of images and results together, below which oneDNN is as fast
SMALL = 3  # pixels a side from which tiles of 4x4 save products


@cache
def _points_of_filters() -> Tensor:
    """(36, 9): what a filter's taps are at the points 0, 1, -1, 2, -2 and infinity, both ways."""
    rows = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    one = torch.tensor(rows, dtype=torch.float64) / 24
    return torch.kron(one, one).float()


def fits(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether a convolution is of the kind that is done here, gains by it, and this machine can.

    Never where a mode watches PyTorch's operators, to count or to trace them.
    """
    kind = (*weight.shape[2:], *stride, *dilation, groups)
    if kind != (3, 3, 1, 1, 1, 1, 1) or isinstance(padding, str) or images.ndim != 4:
        return False
    pad = padding[0]
    if padding[1] != pad or pad > 2 or min(images.shape[2:]) + 2 * pad - 2 < SMALL:
        return False
    here = images.dtype == weight.dtype == torch.float32 and images.device.type == "cpu"
    wide = sum(weight.shape[:2]) >= NARROW and len(images) > 0
    return here and wide and has_fma() and _get_current_dispatch_mode() is None


def _product(x: Tensor, weight: Tensor, pad: int, turned: bool = False) -> Tensor:
    """(N, C, H, W) with `pad` zeros around, by a weight (O, C, 3, 3) or, turned, its transpose."""
    lib, threads = kernels()
    columns = lib.columns_at_once()
    taps = weight.flip(2, 3).permute(2, 3, 0, 1) if turned else weight.permute(2, 3, 1, 0)
    c, o = taps.shape[2:]
    (n, _, h, w), sides = x.shape, -o % columns
    taps = F.pad(taps, (0, sides)).view(9, c, -1, columns).transpose(1, 2)
    filters = _points_of_filters() @ taps.reshape(9, -1)
    y = x.new_empty(n, h + 2 * pad - 2, w + 2 * pad - 2, o).permute(0, 3, 1, 2)
    if lib.winograd(*as_ctypes(x, n, h, w, c, pad, filters, o, y, threads)):
        raise MemoryError
    return y


def _by_weight(x: Tensor, g: Tensor, pad: int) -> Tensor:
    """The gradient by the weight (O, C, 3, 3), channels last."""
    lib, threads = kernels()
    (n, c, h, w), o = x.shape, g.shape[1]
    rows, columns = lib.rows_at_once(), lib.columns_at_once()
    shape = (-(-c // rows) * rows, -(-o // columns) * columns)
    sums = x.new_empty(threads * POINTS, shape[0] * shape[1])
    if lib.winograd_filters(*as_ctypes(x, g, n, h, w, c, pad, o, sums, threads)):
        raise MemoryError
    taps = _points_of_filters().T.repeat(1, threads) @ sums
    by_weight = taps.view(3, 3, *shape)[:, :, :c, :o].permute(3, 2, 0, 1)
    return by_weight.contiguous(memory_format=torch.channels_last)


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


class _Convolve(torch.autograd.Function):
    """(N, C, H, W) -> (N, O, H + 2 pad - 2, W + 2 pad - 2), without bias."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, pad: int) -> Tensor:
        x, ctx.pad = _channels_last(images), pad
        ctx.save_for_backward(x, weight)
        return _product(x, weight, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), g = ctx.saved_tensors, _channels_last(gradient)
        wanted = ctx.needs_input_grad
        return (
            _product(g, weight, 2 - ctx.pad, turned=True) if wanted[0] else None,
            _by_weight(x, g, ctx.pad) if wanted[1] else None,
            None,
        )


def convolve(images: Tensor, weight: Tensor, pad: int) -> Tensor:
    """The convolution of images (N, C, H, W) with a weight (O, C, 3, 3) that `fits`, in float32."""
    out: Tensor = _Convolve.apply(images, weight, pad)  # type: ignore[no-untyped-call]
    return out


class WinogradMode(TorchFunctionMode):
    """While it is entered, convolutions that gain by it are done by `winograd.c`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            images, weight, bias, stride, padding, dilation, groups = args
            if fits(images, weight, stride, padding, dilation, groups):
                maps = convolve(images, weight, padding[0])
                return maps if bias is None else maps + bias.view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


class Winograd(nn.Module):
    """A network whose forward pass runs with `WinogradMode`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with WinogradMode():
            out: Tensor = self.model(images)
        return out
