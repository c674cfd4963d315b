"""What a residual branch may carry: squeeze-and-excitation, stochastic depth, shake-shake."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scale each channel by what the whole map says of it. Hu et al. 2018, arXiv:1709.01507.

    (N, C, H, W) -> same; the inner layer has C / `reduction` outputs.
    """

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.squeeze, self.excite = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        scale = self.excite(F.relu(self.squeeze(pooled))).sigmoid()
        scaled: Tensor = images * scale[:, :, None, None]
        return scaled


class DropPath(nn.Dropout):
    """Stochastic depth: while training, drop a whole branch for a share `p` of the images.

    What is kept is divided by 1 - p. (N, C, H, W) -> same. Huang et al. 2016, arXiv:1603.09382.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        return images * super().forward(images.new_ones(len(images), 1, 1, 1))


class ShakeShake(nn.Module):
    """Mix two branches by a random share of each image's own, and their gradients by another.

    Two of (N, C, H, W) -> one; the mean while evaluating. Gastaldi 2017, arXiv:1705.07485,
    "Shake-Shake-Image".
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.training:
            return (first + second) / 2
        forward, backward = torch.rand(2, len(first), 1, 1, 1, device=first.device).to(first.dtype)
        apart = first - second
        # Its value is second + forward * apart; its gradient that of second + backward * apart.
        mixed: Tensor = second + backward * apart + ((forward - backward) * apart).detach()
        return mixed


def is_random(module: nn.Module) -> bool:
    """Whether the module itself draws random numbers while training."""
    return isinstance(module, ShakeShake) or (isinstance(module, nn.Dropout) and module.p > 0)
