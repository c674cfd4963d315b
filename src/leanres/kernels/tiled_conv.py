"""Convolutions of small maps on a CPU that multiplies bfloat16: images laid side by side.

oneDNN's bfloat16 kernel for the gradient of a filter multiplies row by row, 32 pixels at once,
whatever a row has: at 4 pixels it does eight times the work. With images side by side, zeros
between them, rows are full: 512 -> 512 filters at 4x4, 161 -> 26 ms (two cores with AMX).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from leanres.kernels.convolve import convolve, fits

ROW = 32  # pixels that the kernel multiplies at once
SMALL = 8  # pixels of an output row up to which it pays
HEAVY = 2**20  # weights from which the other two passes gain too, at rows of up to `TINY`
TINY = 4


@dataclass(frozen=True)
class TileLayout:
    """How images lie side by side: `count` of them a row, each `pitch` input pixels wide."""

    count: int
    pitch: int
    stride: int
    padding: int
    rest: int  # input pixels after the last image, so that its outputs have their full pitch too

    def wide(self, maps: Tensor, pitch: int, rest: int = 0) -> Tensor:
        """(N, C, H, W) -> (N / count rounded up, C, H, count * pitch + rest), zeros in the gaps."""
        n, c, h, w = maps.shape
        pixels, whole, row = maps.permute(0, 2, 3, 1), n // self.count, self.count * pitch
        rows = maps.new_zeros(-(-n // self.count), h, row + rest, c)
        out = rows[:, :, :row].view(len(rows), h, self.count, pitch, c)
        full = pixels[: whole * self.count].reshape(whole, self.count, h, w, c)
        out[:whole, :, :, :w] = full.transpose(1, 2)
        if whole < len(out):
            left = n - whole * self.count
            out[whole, :, :left, :w] = pixels[whole * self.count :].transpose(0, 1)
        return rows.permute(0, 3, 1, 2)

    def apart(self, wide: Tensor, n: int, pitch: int, width: int) -> Tensor:
        """The reverse: the first `n` maps, `width` pixels of each; channels last."""
        m, c, h, _ = wide.shape
        rows = wide.permute(0, 2, 3, 1)[:, :, : self.count * pitch]
        pixels = rows.view(m, h, self.count, pitch, c)[:, :, :, :width]
        return pixels.transpose(1, 2).flatten(0, 1)[:n].permute(0, 3, 1, 2)

    def gradient(self, g: Tensor, x: Tensor, weight: Tensor, which: tuple[bool, bool]) -> Any:
        """PyTorch's gradients of the convolution of x: by x, by the weight."""
        s, p = [self.stride] * 2, [self.padding] * 2
        return torch.ops.aten.convolution_backward(
            g, x, weight, None, s, p, [1, 1], False, [0, 0], 1, [*which, False]
        )


def layout(images: Tensor, weight: Tensor, stride: int, padding: int) -> TileLayout | None:
    """How to lay the images of a convolution side by side; None where it does not pay."""
    size = weight.shape[-1]
    out = (images.shape[-1] + 2 * padding - size) // stride + 1
    if size == 1 or weight.shape[-2] != size or not 0 < out <= SMALL or len(images) < 2:
        return None
    pitch = -(-(images.shape[-1] + padding) // stride) * stride  # outputs fall on whole places
    rest = max(0, size - stride - 2 * padding)
    return TileLayout(max(1, ROW // (pitch // stride)), pitch, stride, padding, rest)


class _Convolve(torch.autograd.Function):
    """A convolution without bias, (N, C, H, W) -> (N, O, H', W'), in bfloat16."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, lay: TileLayout) -> Tensor:
        out = (images.shape[-1] + 2 * lay.padding - weight.shape[-1]) // lay.stride + 1
        ctx.lay, ctx.n, ctx.width = lay, len(images), images.shape[-1]
        ctx.whole = weight.numel() >= HEAVY and out <= TINY
        if not ctx.whole:
            ctx.save_for_backward(images, weight)
            return F.conv2d(images, weight, None, lay.stride, lay.padding)
        wide = lay.wide(images, lay.pitch, lay.rest)
        ctx.save_for_backward(wide, weight)
        maps = F.conv2d(wide, weight, None, lay.stride, lay.padding)
        return lay.apart(maps, len(images), lay.pitch // lay.stride, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        lay: TileLayout = ctx.lay
        images, weight = ctx.saved_tensors
        grad_input, by_weight = ctx.needs_input_grad[:2]
        wide = lay.wide(gradient, lay.pitch // lay.stride) if by_weight or ctx.whole else gradient
        if ctx.whole:
            both = (grad_input, by_weight)
            dx, dw = lay.gradient(wide, images, weight, both)[:2]
            return lay.apart(dx, ctx.n, lay.pitch, ctx.width) if grad_input else None, dw, None
        dx = lay.gradient(gradient, images, weight, (True, False))[0] if grad_input else None
        rows = lay.wide(images, lay.pitch, lay.rest) if by_weight else images
        dw = lay.gradient(wide, rows, weight, (False, True))[1] if by_weight else None
        return dx, dw, None


class TiledConvMode(TorchFunctionMode):
    """While it is entered, convolutions that train and gain by it take images side by side.

    Only under bfloat16 autocast on a CPU. Values are those of PyTorch's own convolution, but for
    the order in which the gradient of a filter is summed.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        trains = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        if func is F.conv2d and trains and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            images, weight, bias, stride, padding, dilation, groups = args
            plain = (*dilation, groups) == (1, 1, 1) and not isinstance(padding, str)
            if plain and stride[0] == stride[1] and padding[0] == padding[1]:
                if fits(weight, stride, padding, dilation, groups):
                    return _biased(convolve(images, weight), bias)
                lay = layout(images, weight, stride[0], padding[0])
                if lay is not None:
                    return _convolve(images, weight, bias, lay)
        return func(*args, **(kwargs or {}))


def _convolve(images: Tensor, weight: Tensor, bias: Tensor | None, lay: TileLayout) -> Tensor:
    half = torch.bfloat16
    out: Tensor = _Convolve.apply(images.to(half), weight.to(half), lay)  # type: ignore[no-untyped-call]
    return _biased(out, bias)


def _biased(maps: Tensor, bias: Tensor | None) -> Tensor:
    return maps if bias is None else maps + bias.to(maps.dtype)[:, None, None]


class TiledConv(nn.Module):
    """A network whose forward pass runs with `TiledConvMode`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with TiledConvMode():
            out: Tensor = self.model(images)
        return out
