"""Networks that share their parameters with another one and compute some layers differently."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16  # channels: one block of oneDNN's kernels for AVX-512, two of those for AVX2


def clone_sharing_parameters(model: nn.Module) -> nn.Module:
    """A copy of the network's modules, in the same modes, over its own parameters and buffers.

    Layers of the copy may be replaced by others that compute the same: training it trains `model`,
    which stays as it is.
    """
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def swap_layers(
    model: nn.Module, new_class: Callable[[nn.Module], type[nn.Module] | None]
) -> nn.Module:
    """A clone with the classes of some modules exchanged; `model` itself where none is.

    `new_class` gives a module's subclass with another `forward`, or None to keep the module.
    """
    if not any(map(new_class, model.modules())):
        return model
    clone = clone_sharing_parameters(model)
    for module in clone.modules():
        module.__class__ = new_class(module) or type(module)
    return clone


class SubsampledConv(nn.Conv2d):
    """A strided 1x1 convolution as a plain one of every `stride`-th pixel.

    On a CPU with AVX2 alone oneDNN's gradient of such a filter overruns memory where there are
    under 8 channels: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(images[:, :, ::rows, ::columns], self.weight, self.bias)


def subsample_before_narrow_convs(model: nn.Module) -> nn.Module:
    """The network with its narrow strided 1x1 convolutions as `SubsampledConv`."""
    return swap_layers(model, lambda m: SubsampledConv if _is_narrow_strided(m) else None)


def _is_narrow_strided(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.padding == (0, 0)
        and module.groups == 1
        and module.in_channels < NARROW
    )
