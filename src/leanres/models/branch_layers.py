"""Layers for residual branches: squeeze-and-excitation, stochastic depth, shake-shake."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scale each channel by a factor computed from the means of all channels.

    (N, C, H, W) -> same; the hidden layer has C / `reduction` units. Hu et al. 2018,
    arXiv:1709.01507.
    """

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        scale = self.excite(F.relu(self.squeeze(pooled))).sigmoid()
        scaled: Tensor = images * scale[:, :, None, None]
        return scaled


class DropPath(nn.Dropout):
    """Stochastic depth: in training, drop the whole branch of each image with probability `p`.

    Kept branches are divided by 1 - p. (N, C, H, W) -> same. Huang et al. 2016, arXiv:1603.09382.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        return images * super().forward(images.new_ones(len(images), 1, 1, 1))


class ShakeShake(nn.Module):
    """Mix two branches with a random weight per image, and their gradients with another one.

    Two (N, C, H, W) -> one; in evaluation their mean. Gastaldi 2017, arXiv:1705.07485,
    "Shake-Shake-Image".
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.training:
            return (first + second) / 2
        forward, backward = torch.rand(2, len(first), 1, 1, 1, device=first.device).to(first.dtype)
        difference = first - second
        # The value is second + forward * difference, the gradient that of
        # second + backward * difference.
        correction = ((forward - backward) * difference).detach()
        mixed: Tensor = second + backward * difference + correction
        return mixed


def is_random(module: nn.Module) -> bool:
    """Whether the module itself draws random numbers in training."""
    return isinstance(module, ShakeShake) or (isinstance(module, nn.Dropout) and module.p > 0)
