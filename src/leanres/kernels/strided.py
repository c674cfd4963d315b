"""Strided 1x1 convolutions of few channels, which oneDNN's gradient crashes on."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from leanres.kernels.clone import clone_sharing_parameters

NARROW = 16  # channels: a block of AVX-512, twice that of AVX2


class SubsampleFirst(nn.Conv2d):
    """A 1x1 convolution that takes every `stride`-th pixel itself, before it multiplies.

    Left to oneDNN, the gradient of its filter overruns memory on a CPU with AVX2 alone where there
    are under 8 channels: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(images[:, :, ::rows, ::columns], self.weight, self.bias)


def subsample_before_narrow_convs(model: nn.Module) -> nn.Module:
    """The network with such convolutions replaced; itself where it has none."""
    if not any(map(_is_affected, model.modules())):
        return model
    clone = clone_sharing_parameters(model)
    for module in clone.modules():
        if _is_affected(module):
            module.__class__ = SubsampleFirst
    return clone


def _is_affected(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.padding == (0, 0)
        and module.groups == 1
        and module.in_channels < NARROW
    )
