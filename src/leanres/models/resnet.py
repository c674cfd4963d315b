"""Residual networks in stages: basic, wide and shake-shake blocks from one config.

He et al. 2015, arXiv:1512.03385; Zagoruyko & Komodakis 2016, arXiv:1605.07146; Gastaldi 2017,
arXiv:1705.07485.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanres.errors import UserError
from leanres.models.branch_layers import DropPath, ShakeShake, SqueezeExcite
from leanres.models.config import Classes, InChannels, Width, Widths, check_depth
from leanres.registry import Range, Table, check_fields

DropRate = Annotated[float, Range(0, 0.999)]
Layer = Callable[[int], nn.Module]  # channels -> a layer


def _relu(_: int) -> nn.Module:
    return nn.ReLU()


@dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a residual network; each stage after the first halves the map.

    A `shortcut` that changes the shape is a 1x1 convolution ("projection"), the parameter-free
    option A of He et al. ("pad": every second pixel, channels padded with zeros) or Gastaldi's
    ("shift": two 1x1 convolutions to half the channels each, the second of the map shifted by one
    pixel). `init` "kaiming" draws convolutions and the Linear from a normal distribution of
    variance 2 / fan-out, with bias 0; "kaiming-convs" keeps PyTorch's weights of the Linear.
    Raises `UserError` for settings that do not fit.
    """

    widths: Widths = (16, 32, 64)
    depths: Annotated[tuple[int, ...], Range(1, 1000)] = (3, 3, 3)  # residual blocks of each stage
    stem_width: Width | None = None  # channels of the stem; None: those of the first stage
    stem: Annotated[str, STEMS] = "cifar"  # "cifar": 3x3; "imagenet": 7x7 stride 2 and a max-pool
    # "wide": pre-activation; "shake": two branches with random weights
    block: Annotated[str, BLOCKS] = "basic"
    shortcut: Annotated[str, SHORTCUTS] = "projection"
    dropout: DropRate = 0.0  # before the Linear
    block_dropout: DropRate = 0.0  # between the two convolutions of a wide block
    drop_path: DropRate = 0.0  # stochastic depth: rate of the last block; rises over the blocks
    # Squeeze-and-excitation in each branch: how much narrower its hidden layer is; 0: none.
    squeeze: Annotated[int, Range(0, 65_536)] = 0
    init: Annotated[str, INITS] = "pytorch"
    num_classes: Classes = 10
    in_channels: InChannels = 3

    def __post_init__(self) -> None:
        check_fields(self)
        _check_stages(self)
        if self.block_dropout and self.block != "wide":
            raise UserError("block_dropout needs block='wide': other blocks have no dropout")

    def build(self) -> nn.Module:
        """A new network: float (N, C, H, W) -> logits (N, num_classes)."""
        return ResNet(self)


def _check_stages(config: ResNetConfig) -> None:
    widths, depths = config.widths, config.depths
    if not widths or len(widths) != len(depths):
        given = f"{len(widths)} widths but {len(depths)} depths"
        raise UserError(f"{given}: give one of each per stage")
    check_depth(len(depths), sum(depths))
    chain = (config.stem_width or widths[0], *widths)
    if config.shortcut == "shift" and any(width % 2 for width in widths):
        raise UserError(f"shortcut 'shift' halves the widths {widths}: give even numbers")
    if config.shortcut == "pad" and any(after < before for before, after in pairwise(chain)):
        raise UserError(
            f"shortcut 'pad' cannot narrow {chain}: use widths that never decrease, or 'projection'"
        )


class PadShortcut(nn.Module):
    """Option A of He et al. 2015, sec. 4.2: every `stride`-th pixel, the added channels zero.

    (N, width_in, H, W) -> (N, width_out, H/stride, W/stride); no parameters.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, width_out - width_in

    def forward(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.added))


class ShiftShortcut(nn.Module):
    """Half the channels from every `stride`-th pixel, half from the pixels up and left of those.

    (N, width_in, H, W) -> (N, width_out, H/stride, W/stride). Gastaldi 2017, arXiv:1705.07485.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.here = nn.Conv2d(width_in, width_out // 2, 1, bias=False)
        self.beside = nn.Conv2d(width_in, width_out // 2, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        step = self.stride
        beside = F.pad(images, (1, -1, 1, -1))[:, :, ::step, ::step]
        return torch.cat((self.here(images[:, :, ::step, ::step]), self.beside(beside)), 1)


class BasicBlock(nn.Module):
    """Conv, BN, ReLU, conv, BN, plus the shortcut, then ReLU. He et al. 2015, fig. 2."""

    before: tuple[Layer, ...] = (nn.BatchNorm2d, _relu)  # layers between stem and first block
    after: tuple[Layer, ...] = ()  # layers after the last block

    def __init__(
        self, width_in: int, width: int, stride: int, config: ResNetConfig, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = _conv3(width_in, width, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = SHORTCUTS[config.shortcut](width_in, width, stride)
            if config.shortcut != "pad":
                self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(width))
        self.tail = _tail(width, config, drop)
        self.relu2 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(images)))
        inner = self.norm2(self.conv2(inner))
        inner = inner if self.tail is None else self.tail(inner)
        out: Tensor = self.relu2(inner + self.shortcut(images))
        return out


class WideBlock(nn.Module):
    """BN, ReLU, conv, BN, ReLU, dropout, conv, plus the shortcut.

    A shortcut that changes the shape starts from the activated input and has no batch norm.
    Zagoruyko & Komodakis 2016, fig. 1d.
    """

    before: tuple[Layer, ...] = ()
    after: tuple[Layer, ...] = (nn.BatchNorm2d, _relu)

    def __init__(
        self, width_in: int, width: int, stride: int, config: ResNetConfig, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3(width_in, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(config.block_dropout)
        self.conv2 = _conv3(width, width)
        changes = stride != 1 or width_in != width
        make = SHORTCUTS[config.shortcut]
        self.shortcut = make(width_in, width, stride) if changes else None
        self.tail = _tail(width, config, drop)

    def forward(self, images: Tensor) -> Tensor:
        active = self.relu1(self.norm1(images))
        inner = self.conv2(self.dropout(self.relu2(self.norm2(self.conv1(active)))))
        inner = inner if self.tail is None else self.tail(inner)
        out: Tensor = inner + (images if self.shortcut is None else self.shortcut(active))
        return out


class ShakeBlock(nn.Module):
    """Two branches of ReLU, conv, BN, ReLU, conv, BN, mixed by shake-shake, plus the shortcut.

    A shortcut that changes the shape starts with a ReLU and ends with a batch norm. Gastaldi 2017,
    arXiv:1705.07485, section 2.
    """

    before: tuple[Layer, ...] = (nn.BatchNorm2d,)
    after: tuple[Layer, ...] = (_relu,)

    def __init__(
        self, width_in: int, width: int, stride: int, config: ResNetConfig, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.branch1, self.branch2 = (_shake_branch(width_in, width, stride) for _ in range(2))
        self.mix = ShakeShake()
        self.tail = _tail(width, config, drop)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            change = SHORTCUTS[config.shortcut](width_in, width, stride)
            self.shortcut = nn.Sequential(nn.ReLU(), change, nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        inner = self.mix(self.branch1(images), self.branch2(images))
        inner = inner if self.tail is None else self.tail(inner)
        out: Tensor = inner + self.shortcut(images)
        return out


def _shake_branch(width_in: int, width: int, stride: int) -> nn.Sequential:
    first = (nn.ReLU(), _conv3(width_in, width, stride), nn.BatchNorm2d(width))
    return nn.Sequential(*first, nn.ReLU(), _conv3(width, width), nn.BatchNorm2d(width))


def _tail(width: int, config: ResNetConfig, drop: float) -> nn.Sequential | None:
    """Squeeze-and-excitation and stochastic depth at the end of a branch; None without either."""
    squeeze = (SqueezeExcite(width, config.squeeze),) if config.squeeze else ()
    path = (DropPath(drop),) if drop else ()
    return nn.Sequential(*squeeze, *path) if squeeze or path else None


class ResNet(nn.Module):
    """The network of a `ResNetConfig`: stem, stages of blocks, average pool, dropout, Linear."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        widths = (config.stem_width or config.widths[0], *config.widths)
        block = BLOCKS[config.block]
        self.stem = STEMS[config.stem](config.in_channels, widths[0], block.before)
        stages = (_stage(i, *pair, config) for i, pair in enumerate(pairwise(widths)))
        self.stages = nn.Sequential(*stages)
        after = [layer(widths[-1]) for layer in block.after]
        self.norm = nn.Sequential(*after) if after else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(widths[-1], config.num_classes)
        INITS[config.init](self)

    def forward(self, images: Tensor) -> Tensor:
        """Float (N, C, H, W) -> raw logits (N, num_classes)."""
        pooled = self.pool(self.norm(self.stages(self.stem(images))))
        logits: Tensor = self.linear(self.dropout(pooled.flatten(1)))
        return logits


def _stage(index: int, width_in: int, width: int, config: ResNetConfig) -> nn.Sequential:
    block, depth = BLOCKS[config.block], config.depths[index]
    before, total = sum(config.depths[:index]), sum(config.depths)
    drops = [config.drop_path * (before + i + 1) / total for i in range(depth)]
    first = block(width_in, width, 2 if index else 1, config, drops[0])
    return nn.Sequential(first, *(block(width, width, 1, config, drop) for drop in drops[1:]))


def _conv3(width_in: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride, 1, bias=False)


def _cifar_stem(channels: int, width: int, before: Sequence[Layer]) -> nn.Sequential:
    return nn.Sequential(_conv3(channels, width), *(layer(width) for layer in before))


def _imagenet_stem(channels: int, width: int, before: Sequence[Layer]) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    return nn.Sequential(conv, *(layer(width) for layer in before), nn.MaxPool2d(3, 2, 1))


def _projection(width_in: int, width: int, stride: int) -> nn.Module:
    return nn.Conv2d(width_in, width, 1, stride, bias=False)


def _init_kaiming(network: nn.Module) -> None:
    _init_convs(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _init_convs(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


STEMS: Table[Callable[[int, int, Sequence[Layer]], nn.Module]] = Table(
    "stem", {"cifar": _cifar_stem, "imagenet": _imagenet_stem}
)
BLOCKS: Table[type[BasicBlock | WideBlock | ShakeBlock]] = Table(
    "block", {"basic": BasicBlock, "wide": WideBlock, "shake": ShakeBlock}
)
SHORTCUTS: Table[Callable[[int, int, int], nn.Module]] = Table(
    "shortcut", {"projection": _projection, "pad": PadShortcut, "shift": ShiftShortcut}
)
INITS: Table[Callable[[nn.Module], None]] = Table(
    "init",
    {"pytorch": lambda _: None, "kaiming": _init_kaiming, "kaiming-convs": _init_convs},
)
