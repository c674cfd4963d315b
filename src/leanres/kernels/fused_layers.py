"""Modules that replace several layers of a network by one function of `fused_norm`.

They do so where a step in bfloat16 trains; any other call, as in evaluation, is computed by the
layers themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanres.kernels.fused_norm import ACTS, Activation, AddNormAct, ConvPoolNormAct, PoolNormAct


class _FusedNorm(nn.Module):
    """A batch norm with affine parameters and running statistics, and an activation after it."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def trains_in_bf16(self, images: Tensor) -> bool:
        """Whether a call with these images is a step of training in bfloat16."""
        return images.dtype == torch.bfloat16 and self.norm.training and torch.is_grad_enabled()

    def activate(self, maps: Tensor) -> Tensor:
        """The activation by PyTorch."""
        return maps if self.act is None else self.act(maps)

    def fused(self, function: type[torch.autograd.Function], *inputs: object) -> Tensor:
        """Call a function of `fused_norm` and update the norm's running statistics."""
        norm, act = self.norm, ACTS[None if self.act is None else type(self.act)]
        out: Tensor
        out, mean, var = function.apply(*inputs, norm.weight, norm.bias, norm.eps, act)  # type: ignore[no-untyped-call]
        _track_(norm, out.numel() // out.shape[1], mean, var)
        return out


@torch.no_grad()
def _track_(norm: nn.BatchNorm2d, pixels: int, mean: Tensor, var: Tensor) -> None:
    """Update the running statistics as PyTorch's batch norm does, with the unbiased variance."""
    assert norm.momentum is not None
    unbiased = var * (pixels / max(1, pixels - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        assert running is not None
        running.lerp_(new.float(), norm.momentum)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)


class FusedPoolNormAct(_FusedNorm):
    """act(norm(x)), or with `pool` act(norm(pool(x))) with a 2x2 max-pool."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None, pool: bool = False) -> None:
        super().__init__(norm, act)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        if self.trains_in_bf16(images):
            return self.fused(PoolNormAct, images, self.pool)
        images = nn.functional.max_pool2d(images, 2) if self.pool else images
        return self.activate(self.norm(images))


class FusedConvPoolNormAct(_FusedNorm):
    """act(norm(pool(conv(x)))) with a 2x2 max-pool and a convolution that `amx_supports`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, act: nn.Module | None) -> None:
        super().__init__(norm, act)
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        in_bf16 = torch.is_autocast_enabled("cpu")  # the first layer's images are float32
        if in_bf16 and self.norm.training and torch.is_grad_enabled():
            return self.fused(ConvPoolNormAct, images, self.conv.weight)
        return self.activate(self.norm(nn.functional.max_pool2d(self.conv(images), 2)))


class FusedAddNormAct(_FusedNorm):
    """act(norm(x) + other): the end of a residual block."""

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        if self.trains_in_bf16(images):
            return self.fused(AddNormAct, images, other)
        return self.activate(self.norm(images) + other)


class FusedGELU(nn.Module):
    """GELU of maps in bfloat16."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or images.dtype != torch.bfloat16 or images.ndim != 4:
            return nn.functional.gelu(images)
        out: Tensor = Activation.apply(images, ACTS[nn.GELU])  # type: ignore[no-untyped-call]
        return out
