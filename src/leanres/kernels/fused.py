"""Max-pool, batch norm and activation in few passes over memory, on a CPU in bfloat16.

PyTorch runs them one by one, each with its own reading and writing of whole maps: a third of a
step. `fused.c` does them together (`training.kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leanres.kernels import convolve
from leanres.kernels.build import as_ctypes, kernels, to_bf16_channels_last

ACTS: dict[type[nn.Module] | None, int] = {None: 0, nn.ReLU: 1, nn.GELU: 2}  # fused.c's enum


@dataclass(frozen=True)
class _Batch:
    """Statistics of maps (N, C, H, W) by channel: (C,) float64."""

    rows: int  # pixels of a channel
    mean: Tensor
    var: Tensor
    rstd: Tensor

    @classmethod
    def of(cls, sums: Tensor, rows: int, eps: float) -> _Batch:
        """From each thread's sums of values and of squares, (threads, 2, C)."""
        mean, square = sums.sum(0) / rows
        var = (square - mean * mean).clamp(min=0)
        return cls(rows, mean, var, (var + eps).rsqrt())

    def scale_shift(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Scale and shift of the norm, (2, C) float32."""
        scale = weight * self.rstd
        return torch.stack((scale, bias - self.mean * scale)).float()

    def gradients(
        self, sums: Tensor, weight: Tensor, scale_shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of weight and bias, and the coefficients (4, C) of the one of x.

        sums: each thread's of the gradient by the norm's result, and of its products with x.
        """
        by_bias, by_scale = sums.sum(0)
        by_weight = self.rstd * (by_scale - self.mean * by_bias)
        factor = weight * self.rstd / self.rows
        along = -factor * self.rstd * by_weight
        level = -factor * by_bias - along * self.mean
        whole = torch.cat((scale_shift, torch.stack((along, level)).float()))
        return by_weight.float(), by_bias.float(), whole


def _sums(threads: int, channels: int) -> Tensor:
    return torch.zeros(threads, 2, channels, dtype=torch.float64)


def _norm(
    ctx: Any, x: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """act(bn(x)) of maps with these sums, and the batch's mean and variance; all else to ctx."""
    lib, threads = kernels()
    ctx.batch, ctx.act = _Batch.of(sums, x.numel() // x.shape[1], eps), act
    ctx.scale_shift, y = ctx.batch.scale_shift(weight, bias), torch.empty_like(x)
    lib.forward(*as_ctypes(x, ctx.batch.rows, x.shape[1], ctx.scale_shift, act, y, threads))
    ctx.mark_non_differentiable(ctx.batch.mean, ctx.batch.var)
    return y, ctx.batch.mean, ctx.batch.var


def _by_norm(ctx: Any, x: Tensor, dy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by weight and bias of `_norm`, and the scale_shift of the one by x."""
    lib, threads = kernels()
    c = x.shape[1]
    sums = _sums(threads, c)
    lib.gradient_sums(*as_ctypes(x, dy, ctx.batch.rows, c, ctx.scale_shift, ctx.act, sums, threads))
    by_weight, by_bias, scale_shift = ctx.batch.gradients(sums, weight, ctx.scale_shift)
    return by_weight, by_bias, scale_shift


def _by_maps(ctx: Any, x: Tensor, dy: Tensor, scale_shift: Tensor) -> Tensor:
    """The gradient by x of `_norm`."""
    lib, threads = kernels()
    dx = torch.empty_like(x)
    lib.backward(*as_ctypes(x, dy, ctx.batch.rows, x.shape[1], scale_shift, ctx.act, dx, threads))
    return dx


class _Fused(torch.autograd.Function):
    """(N, C, H, W) bfloat16 -> act(bn(pool(x))), and the batch's mean and variance.

    `weight` and `bias` (C,) float32; `pool` halves the map by a 2x2 maximum.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int, pool: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        lib, threads = kernels()
        x, where = to_bf16_channels_last(x), None
        n, c, h, w = ctx.shape = x.shape
        sums = _sums(threads, c)
        if pool:
            kept = x.new_empty(n, h // 2, w // 2, c).permute(0, 3, 1, 2)
            where = torch.empty(kept.numel(), dtype=torch.uint8)
            lib.pool(*as_ctypes(x, n, h, w, c, kept, where, sums, threads))
        else:
            kept = x
            lib.sums_of(*as_ctypes(x, n * h * w, c, sums, threads))
        ctx.save_for_backward(kept, where, weight)
        return _norm(ctx, kept, sums, weight, bias, eps, act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        kept, where, weight = ctx.saved_tensors
        lib, threads = kernels()
        dy, (n, c, h, w) = to_bf16_channels_last(dy), ctx.shape
        by_weight, by_bias, scale_shift = _by_norm(ctx, kept, dy, weight)
        dx = None
        if ctx.needs_input_grad[0] and where is None:
            dx = _by_maps(ctx, kept, dy, scale_shift)
        elif ctx.needs_input_grad[0]:
            dx = kept.new_empty(n, h, w, c).permute(0, 3, 1, 2)
            lib.unpool(*as_ctypes(kept, dy, where, n, h, w, c, scale_shift, ctx.act, dx, threads))
        return dx, by_weight, by_bias, None, None, None


class _Convolved(torch.autograd.Function):
    """(N, C, H, W) -> act(bn(pool(conv(x)))), and the batch's mean and variance.

    The convolution's result is nowhere: what it gives is pooled at once, and its gradient, zero
    in three of four places, made where it is read. `filters` (O, C, 3, 3) that `convolve.fits`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        filters: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        act: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, half = to_bf16_channels_last(images), convolve.filters_of(filters)
        sums = _sums(kernels()[1], len(half))
        kept, where = convolve.conv_maxpool(x, half, sums)
        ctx.save_for_backward(x, half, kept, where, weight)
        return _norm(ctx, kept, sums, weight, bias, eps, act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, half, kept, where, weight = ctx.saved_tensors
        dy = to_bf16_channels_last(dy)
        by_weight, by_bias, scale_shift = _by_norm(ctx, kept, dy, weight)
        dz, wanted = _by_maps(ctx, kept, dy, scale_shift), ctx.needs_input_grad
        dx = convolve.grad_input(dz, where, half, *x.shape[2:]) if wanted[0] else None
        grad_weight = convolve.grad_weight(x, dz, where) if wanted[1] else None
        return dx, grad_weight, by_weight, by_bias, None, None


class _Join(torch.autograd.Function):
    """(N, C, H, W) bfloat16, twice -> act(bn(x) + other), and the batch's mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        lib, threads = kernels()
        x, other, c = to_bf16_channels_last(x), to_bf16_channels_last(other), x.shape[1]
        sums = _sums(threads, c)
        lib.sums_of(*as_ctypes(x, x.numel() // c, c, sums, threads))
        batch = _Batch.of(sums, x.numel() // c, eps)
        scale_shift, y = batch.scale_shift(weight, bias), torch.empty_like(x)
        lib.join(*as_ctypes(x, other, batch.rows, c, scale_shift, act, y, threads))
        ctx.save_for_backward(x, other, weight, scale_shift)
        ctx.batch, ctx.act = batch, act
        ctx.mark_non_differentiable(batch.mean, batch.var)
        return y, batch.mean, batch.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, other, weight, scale_shift = ctx.saved_tensors
        lib, threads = kernels()
        dy, c, rows = to_bf16_channels_last(dy), x.shape[1], ctx.batch.rows
        sums, dz = _sums(threads, c), torch.empty_like(x)
        lib.join_gradient(
            *as_ctypes(x, other, dy, rows, c, scale_shift, ctx.act, dz, sums, threads)
        )
        by_weight, by_bias, whole = ctx.batch.gradients(sums, weight, scale_shift)
        dx = torch.empty_like(x)
        lib.backward(*as_ctypes(x, dz, rows, c, whole, ACTS[None], dx, threads))
        return dx, dz, by_weight, by_bias, None, None


class _Activate(torch.autograd.Function):
    """act(x) of bfloat16 maps (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: int) -> Tensor:
        lib, threads = kernels()
        x, c = to_bf16_channels_last(x), x.shape[1]
        ctx.save_for_backward(x)
        ctx.act, ctx.scale_shift, y = act, torch.zeros(4, c), torch.empty_like(x)
        ctx.scale_shift[0] = 1  # the scale; the first two scale_shift are those of the forward pass
        lib.forward(*as_ctypes(x, x.numel() // c, c, ctx.scale_shift, act, y, threads))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        lib, threads = kernels()
        dx, c = torch.empty_like(x), x.shape[1]
        rows = x.numel() // c
        lib.backward(
            *as_ctypes(x, to_bf16_channels_last(dy), rows, c, ctx.scale_shift, ctx.act, dx, threads)
        )
        return dx, None


def _trains(norm: nn.BatchNorm2d, images: Tensor) -> bool:
    return images.dtype == torch.bfloat16 and norm.training and torch.is_grad_enabled()


@torch.no_grad()
def _track_(norm: nn.BatchNorm2d, rows: int, mean: Tensor, var: Tensor) -> None:
    """Move the running statistics as PyTorch's own batch norm does."""
    assert norm.momentum is not None
    unbiased = var * (rows / max(1, rows - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        assert running is not None
        running.lerp_(new.float(), norm.momentum)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)


class FusedPoolNormAct(nn.Module):
    """act(norm(pool(x))) of a network in training; other calls go through PyTorch's kernels."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None, pool: bool = False) -> None:
        super().__init__()
        self.norm, self.act, self.pool = norm, act, pool

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if not _trains(norm, images):
            images = nn.functional.max_pool2d(images, 2) if self.pool else images
            images = norm(images)
            return images if self.act is None else self.act(images)
        act = ACTS[None if self.act is None else type(self.act)]
        out, mean, var = _Fused.apply(images, norm.weight, norm.bias, norm.eps, act, self.pool)  # type: ignore[no-untyped-call]
        _track_(norm, out.numel() // out.shape[1], mean, var)
        maps: Tensor = out
        return maps


class FusedConvPoolNormAct(nn.Module):
    """act(norm(pool(conv(x)))) under bfloat16 autocast in training; other calls are PyTorch's."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, act: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if not (norm.training and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            images = norm(nn.functional.max_pool2d(self.conv(images), 2))
            return images if self.act is None else self.act(images)
        act = ACTS[None if self.act is None else type(self.act)]
        out, mean, var = _Convolved.apply(  # type: ignore[no-untyped-call]
            images, self.conv.weight, norm.weight, norm.bias, norm.eps, act
        )
        _track_(norm, out.numel() // out.shape[1], mean, var)
        maps: Tensor = out
        return maps


class FusedAddNormAct(nn.Module):
    """act(norm(x) + other), likewise."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        norm = self.norm
        if not _trains(norm, images):
            joined: Tensor = self.act(norm(images) + other)
            return joined
        out, mean, var = _Join.apply(  # type: ignore[no-untyped-call]
            images, other, norm.weight, norm.bias, norm.eps, ACTS[type(self.act)]
        )
        _track_(norm, out.numel() // out.shape[1], mean, var)
        maps: Tensor = out
        return maps


class FusedGELU(nn.Module):
    """GELU of the maps of a network in training; other calls go through PyTorch's kernels."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.bfloat16 or images.ndim != 4:
            return nn.functional.gelu(images)
        out: Tensor = _Activate.apply(images, ACTS[nn.GELU])  # type: ignore[no-untyped-call]
        return out
