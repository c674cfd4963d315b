"""ConvMode: intercept the convolutions of a network, to compute them by other kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Convolve = Callable[..., Tensor | None]


class ConvMode(TorchFunctionMode):
    """Within it, calls of `F.conv2d` as `nn.Conv2d` makes them are offered to `convolve`.

    `convolve(images, weight, stride, padding, dilation, groups)` returns the convolution without
    its bias, or None to leave it to PyTorch.
    """

    def __init__(self, convolve: Convolve) -> None:
        super().__init__()
        self.convolve = convolve

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7:
            images, weight, bias, *geometry = args
            maps = self.convolve(images, weight, *geometry)
            if maps is not None:
                return maps if bias is None else maps + bias.to(maps.dtype).view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


class NetworkInMode(nn.Module):
    """A network whose forward pass runs within a `ConvMode`."""

    def __init__(self, model: nn.Module, convolve: Convolve) -> None:
        super().__init__()
        self.model, self.convolve = model, convolve

    def forward(self, images: Tensor) -> Tensor:
        with ConvMode(self.convolve):
            out: Tensor = self.model(images)
        return out
