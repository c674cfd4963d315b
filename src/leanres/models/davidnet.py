"""Conv-pool residual networks in the style of DavidNet: resnet-custom and custom-resnet.

The originals end in log-softmax. These return raw logits, as all networks here do: log-softmax is
idempotent, so cross-entropy and argmax are the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from leanres.models.config import Classes, InChannels, Width
from leanres.registry import Range, Table, check_fields

FourWidths = Annotated[tuple[int, int, int, int], Range(1, 65_536)]


@dataclass(frozen=True)
class DavidNetConfig:
    """resnet-custom: four conv-pool layers, residual pairs at the second and fourth width.

    Its document and its code differ. `reading` "described" follows the document; "as-built" follows
    the code: no padding and a 3x3 pool in the third layer, no pool in the fourth. Raises
    `UserError` for settings that do not fit.
    """

    widths: FourWidths = (64, 128, 256, 512)  # channels of each layer
    reading: Annotated[str, READINGS] = "described"
    num_classes: Classes = 10
    in_channels: InChannels = 3

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> nn.Module:
        """A new network: float (N, C, H, W) -> logits (N, num_classes)."""
        return DavidNet(self)


@dataclass(frozen=True)
class BranchNetConfig:
    """custom-resnet: layers one and three are sums of two parallel branches of the same input.

    For 32x32 images the maps have 15x15, 6x6 and 2x2 pixels; all convolutions have a bias. Raises
    `UserError` for settings that do not fit.
    """

    widths: FourWidths = (64, 128, 256, 512)  # channels of the stem and of each layer
    head_width: Width = 256  # channels between the two 1x1 convolutions
    num_classes: Classes = 10
    in_channels: InChannels = 3

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> nn.Module:
        """A new network: float (N, C, H, W) -> logits (N, num_classes)."""
        return BranchNet(self)


# Padding and pool of the third layer, pool of the fourth; a pool of 1 changes nothing.
READINGS: Table[tuple[int, int, int]] = Table(
    "reading", {"described": (1, 2, 2), "as-built": (0, 3, 1)}
)


class Residual(nn.Module):
    """x + inner(x), with no ReLU after the sum. (N, C, H, W) -> same."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = images + self.inner(images)
        return out


class DavidNet(nn.Module):
    """The network of a `DavidNetConfig`, after D. Page, "How to Train Your ResNet", 2018."""

    def __init__(self, config: DavidNetConfig) -> None:
        super().__init__()
        w1, w2, w3, w4 = config.widths
        padding3, pool3, pool4 = READINGS[config.reading]
        self.stem = _layer(config.in_channels, w1)
        self.layer1 = nn.Sequential(_layer(w1, w2, pool=2), _residual_pair(w2))
        self.layer2 = _layer(w2, w3, padding=padding3, pool=pool3)
        self.layer3 = nn.Sequential(_layer(w3, w4, pool=pool4), _residual_pair(w4))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.linear = nn.Linear(w4, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Float (N, C, H, W) -> raw logits (N, num_classes)."""
        maps = self.layer3(self.layer2(self.layer1(self.stem(images))))
        logits: Tensor = self.linear(self.pool(maps).flatten(1))
        return logits


def _layer(width_in: int, width: int, *, padding: int = 1, pool: int = 1) -> nn.Sequential:
    """3x3 convolution, max-pool if `pool` is above 1, batch norm, ReLU."""
    conv = nn.Conv2d(width_in, width, 3, 1, padding, bias=False)
    pools = (nn.MaxPool2d(pool),) if pool > 1 else ()
    return nn.Sequential(conv, *pools, nn.BatchNorm2d(width), nn.ReLU())


def _residual_pair(width: int) -> Residual:
    return Residual(nn.Sequential(*_layer(width, width), *_layer(width, width)))


class Branches(nn.Module):
    """wide(x) + deep(x): blocks X and R of custom-resnet on the same input, run in this order."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.wide, self.deep = _pooled(width_in, width), _strided(width_in, width)

    def forward(self, images: Tensor) -> Tensor:
        return torch.add(self.wide(images), self.deep(images))


class BranchNet(nn.Module):
    """The network of a `BranchNetConfig`."""

    def __init__(self, config: BranchNetConfig) -> None:
        super().__init__()
        w0, w1, w2, w3 = config.widths
        conv = nn.Conv2d(config.in_channels, w0, 3, 1, 1)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(w0), nn.ReLU())
        self.layer1 = Branches(w0, w1)
        self.layer2 = _pooled(w1, w2)
        self.layer3 = Branches(w2, w3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Conv2d(w3, config.head_width, 1), nn.Conv2d(config.head_width, config.num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Float (N, C, H, W) -> raw logits (N, num_classes)."""
        maps = self.layer3(self.layer2(self.layer1(self.stem(images))))
        logits: Tensor = self.head(self.pool(maps)).flatten(1)
        return logits


def _pooled(width_in: int, width: int) -> nn.Sequential:
    """Block X: 3x3 convolution, 4x4 max-pool of stride 2, batch norm, ReLU."""
    conv = nn.Conv2d(width_in, width, 3, 1, 1)
    return nn.Sequential(conv, nn.MaxPool2d(4, 2), nn.BatchNorm2d(width), nn.ReLU())


def _strided(width_in: int, width: int) -> nn.Sequential:
    """Block R: unpadded 3x3 convolution, BN, ReLU, 2x2 convolution of stride 2, BN, ReLU."""
    first = (nn.Conv2d(width_in, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    second = (nn.Conv2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*first, *second)
