"""Max-pool, batch norm and activation as one differentiable function, by `csrc/fused.c`.

PyTorch computes these layers one by one, each reading and writing whole maps: a third of a training
step on a CPU in bfloat16. Here both directions take two passes over the maps, and of these only the
input x of the norm is kept for the backward pass.

The formulas, for one channel; sums are over its m = N * H * W pixels of the batch:

    forward   sum x, sum x^2          -> mean, var, rstd = 1 / sqrt(var + eps)
              y = act(z), z = scale x + shift
                  scale = weight rstd, shift = bias - mean scale
    backward  dz = dy act'(z)           z is computed again from x
              sum dz, sum dz x        -> grad_bias = sum dz
                                         grad_weight = sum dz xhat = rstd (sum dz x - mean sum dz)
              dx = scale (dz - grad_bias / m - xhat grad_weight / m),  xhat = (x - mean) rstd
                 = scale dz + slope x + offset
                  slope = -scale rstd grad_weight / m
                  offset = -scale grad_bias / m - slope mean

So the kernels only take two sums per channel, and apply coefficients per channel; what is between
is computed here in float64, on C values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leanres.kernels.amx_conv import as_filters, conv_maxpool, grad_input, grad_weight
from leanres.kernels.build import call, to_bf16_channels_last

ACTS: dict[type[nn.Module] | None, int] = {None: 0, nn.ReLU: 1, nn.GELU: 2}  # as in fused.c


def _zero_sums(channels: int) -> Tensor:
    """Two sums per channel and thread, as the kernels add to them."""
    return torch.zeros(torch.get_num_threads(), 2, channels, dtype=torch.float64)


@dataclass(frozen=True)
class BatchStats:
    """Statistics per channel of maps (N, C, H, W): (C,) float64."""

    pixels: int  # N * H * W
    mean: Tensor
    var: Tensor
    rstd: Tensor

    @classmethod
    def from_sums(cls, sums: Tensor, x: Tensor, eps: float) -> BatchStats:
        """From each thread's sums of x and of x^2, (threads, 2, C)."""
        pixels = x.numel() // x.shape[1]
        mean, square = sums.sum(0) / pixels
        var = (square - mean * mean).clamp(min=0)
        return cls(pixels, mean, var, (var + eps).rsqrt())

    def scale_shift(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Scale and shift of the forward pass, (2, C) float32."""
        scale = weight * self.rstd
        return torch.stack((scale, bias - self.mean * scale)).float()

    def gradients(
        self, sums: Tensor, weight: Tensor, scale_shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of weight and bias, and the coefficients (4, C) of that of x.

        sums: each thread's sums of dz and of dz * x, (threads, 2, C).
        """
        grad_bias, dz_x = sums.sum(0)
        grad_scale = self.rstd * (dz_x - self.mean * grad_bias)
        factor = weight * self.rstd / self.pixels
        slope = -factor * self.rstd * grad_scale
        offset = -factor * grad_bias - slope * self.mean
        coefs = torch.cat((scale_shift, torch.stack((slope, offset)).float()))
        return grad_scale.float(), grad_bias.float(), coefs


def _norm_act(
    ctx: Any, x: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """act(bn(x)) of maps with these sums, their mean and variance; the rest goes to ctx."""
    stats = ctx.stats = BatchStats.from_sums(sums, x, eps)
    ctx.scale_shift, ctx.act, y = stats.scale_shift(weight, bias), act, torch.empty_like(x)
    call("norm_act", x, stats.pixels, x.shape[1], ctx.scale_shift, act, y)
    ctx.mark_non_differentiable(stats.mean, stats.var)
    return y, stats.mean, stats.var


def _backward(ctx: Any, x: Tensor, dy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of weight and bias of `_norm_act`, and the coefficients (4, C) of that of x."""
    sums = _zero_sums(x.shape[1])
    call("norm_act_grad_sums", x, dy, ctx.stats.pixels, x.shape[1], ctx.scale_shift, ctx.act, sums)
    gradients: tuple[Tensor, Tensor, Tensor] = ctx.stats.gradients(sums, weight, ctx.scale_shift)
    return gradients


def _grad_x(x: Tensor, dy: Tensor, coefs: Tensor, act: int) -> Tensor:
    """The gradient of the input of act(bn(x)), from the coefficients (4, C)."""
    dx, c = torch.empty_like(x), x.shape[1]
    call("norm_act_grad_input", x, dy, x.numel() // c, c, coefs, act, dx)
    return dx


class PoolNormAct(torch.autograd.Function):
    """(N, C, H, W) -> act(bn(pool(x))) in bfloat16, and the batch's mean and variance (C,).

    `pool`: whether a 2x2 max-pool comes first. `weight` and `bias`: (C,) float32, of the norm.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, pool: bool, weight: Tensor, bias: Tensor, eps: float, act: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, argmax = to_bf16_channels_last(images), None
        n, c, h, w = ctx.shape = x.shape
        sums = _zero_sums(c)
        if pool:
            unpooled, x = x, x.new_empty(n, h // 2, w // 2, c).permute(0, 3, 1, 2)
            argmax = torch.empty(x.numel(), dtype=torch.uint8)
            call("max_pool", unpooled, n, h, w, c, x, argmax, sums)
        else:
            call("channel_sums", x, n * h * w, c, sums)
        ctx.save_for_backward(x, argmax, weight)
        return _norm_act(ctx, x, sums, weight, bias, eps, act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, argmax, weight = ctx.saved_tensors
        dy = to_bf16_channels_last(gradient)
        grad_scale, grad_bias, coefs = _backward(ctx, x, dy, weight)
        dx = None
        if ctx.needs_input_grad[0] and argmax is None:
            dx = _grad_x(x, dy, coefs, ctx.act)
        elif ctx.needs_input_grad[0]:
            n, c, h, w = ctx.shape
            dx = x.new_empty(n, h, w, c).permute(0, 3, 1, 2)
            call("unpool_grad_input", x, dy, argmax, n, h, w, c, coefs, ctx.act, dx)
        return dx, None, grad_scale, grad_bias, None, None


class ConvPoolNormAct(torch.autograd.Function):
    """(N, C, H, W) -> act(bn(pool(conv(x)))) in bfloat16, and the batch's mean and variance (O,).

    The convolution's result is never materialised: each block of it is pooled while it is in the
    cache, and its gradient, zero in three of four pixels, is read from the pool's. `filters`
    (O, C, 3, 3) are such as `amx_supports`.
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
        images, filters = to_bf16_channels_last(images), as_filters(filters)
        sums = _zero_sums(len(filters))
        x, argmax = conv_maxpool(images, filters, sums)
        ctx.save_for_backward(images, filters, x, argmax, weight)
        return _norm_act(ctx, x, sums, weight, bias, eps, act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        images, filters, x, argmax, weight = ctx.saved_tensors
        dy = to_bf16_channels_last(gradient)
        grad_scale, grad_bias, coefs = _backward(ctx, x, dy, weight)
        dx = _grad_x(x, dy, coefs, ctx.act)
        needs_images, needs_filters = ctx.needs_input_grad[:2]
        d_images = grad_input(dx, argmax, filters, *images.shape[2:]) if needs_images else None
        d_filters = grad_weight(images, dx, argmax) if needs_filters else None
        return d_images, d_filters, grad_scale, grad_bias, None, None


class AddNormAct(torch.autograd.Function):
    """x, other (N, C, H, W) -> act(bn(x) + other) in bfloat16, and mean and variance of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, other, c = to_bf16_channels_last(x), to_bf16_channels_last(other), x.shape[1]
        sums = _zero_sums(c)
        call("channel_sums", x, x.numel() // c, c, sums)
        stats = BatchStats.from_sums(sums, x, eps)
        scale_shift, y = stats.scale_shift(weight, bias), torch.empty_like(x)
        call("add_norm_act", x, other, stats.pixels, c, scale_shift, act, y)
        ctx.save_for_backward(x, other, weight, scale_shift)
        ctx.stats, ctx.act = stats, act
        ctx.mark_non_differentiable(stats.mean, stats.var)
        return y, stats.mean, stats.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, other, weight, scale_shift = ctx.saved_tensors
        dy, c, pixels = to_bf16_channels_last(gradient), x.shape[1], ctx.stats.pixels
        sums, dz = _zero_sums(c), torch.empty_like(x)
        call("add_norm_act_grad", x, other, dy, pixels, c, scale_shift, ctx.act, dz, sums)
        grad_scale, grad_bias, coefs = ctx.stats.gradients(sums, weight, scale_shift)
        dx = _grad_x(x, dz, coefs, ACTS[None])  # dz has been through the activation
        return dx, dz, grad_scale, grad_bias, None, None


class Activation(torch.autograd.Function):
    """act(x) of maps (N, C, H, W) in bfloat16: `norm_act` with scale 1 and shift 0."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, act: int) -> Tensor:
        x, c = to_bf16_channels_last(images), images.shape[1]
        ctx.save_for_backward(x)
        ctx.act, ctx.coefs, y = act, torch.zeros(4, c), torch.empty_like(x)
        ctx.coefs[0] = 1  # scale; shift, slope and offset are 0
        call("norm_act", x, x.numel() // c, c, ctx.coefs, act, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _grad_x(x, to_bf16_channels_last(gradient), ctx.coefs, ctx.act), None
