"""A mode that sees each convolution of a network as it runs, to compute it by another kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ConvMode(TorchFunctionMode):
    """Within it, calls of `F.conv2d` as `nn.Conv2d` makes them are offered to `convolve`."""

    def convolve(
        self,
        images: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor | None:
        """The convolution without its bias; None to leave it to PyTorch."""
        raise NotImplementedError

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
    """A network whose forward pass runs within a mode."""

    mode: ClassVar[type[ConvMode]]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with self.mode():
            out: Tensor = self.model(images)
        return out
