"""SpeedNet: a frozen whitening layer, conv-pool stages, a linear head; made for fast training.

It follows the CIFAR-10 speed records (arXiv:2404.00498): few wide layers, early pooling, batch norm
without a trained scale, filters initialised as a partial identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.models.config import Classes, InChannels, Widths, check_depth
from leanres.registry import Range, Table, check_fields

ACTIVATIONS: Table[Callable[[], nn.Module]] = Table(
    "activation",
    {
        "relu": partial(nn.ReLU, inplace=True),  # the backward pass of the others needs their input
        "hardswish": nn.Hardswish,
        "silu": nn.SiLU,
        "gelu": nn.GELU,
    },
)


@dataclass(frozen=True)
class SpeedNetConfig:
    """Architecture of a SpeedNet for images of at least 16x16 pixels.

    Raises `UserError` for settings that do not fit.
    """

    widths: Widths = (64, 256, 256)
    depth: Annotated[int, Range(2, 1000)] = 2  # convolutions of each stage
    whiten_px: Annotated[int, Range(1, 64)] = 2  # side of the whitening patches
    residual: bool = False  # add each stage's pooled map to the output of its last convolution
    # On a CPU hardswish takes a third longer than relu, silu and gelu three times as long.
    activation: Annotated[str, ACTIVATIONS] = "relu"
    num_classes: Classes = 10
    in_channels: InChannels = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.widths:
            raise UserError("widths = (): give one width per stage, such as (64, 256)")
        check_depth(len(self.widths), self.depth * len(self.widths))

    def build(self) -> nn.Module:
        """A new network: normalised (N, C, H, W) -> logits (N, num_classes)."""
        return SpeedNet(self)


class SpeedNet(nn.Module):
    """The network of a `SpeedNetConfig`. Call `init_from_data_` before training."""

    def __init__(self, config: SpeedNetConfig) -> None:
        super().__init__()
        patch = config.in_channels * config.whiten_px**2
        self.stem = nn.Conv2d(config.in_channels, 2 * patch, config.whiten_px)
        self.stem.weight.requires_grad_(False)
        assert self.stem.bias is not None
        nn.init.zeros_(self.stem.bias)
        self.stem_act = ACTIVATIONS[config.activation]()
        widths = (2 * patch, *config.widths)
        self.stages = nn.Sequential(*(Stage(i, o, config) for i, o in pairwise(widths)))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[-1], config.num_classes, bias=False)
        # Small initial logits: with label smoothing, confident ones cost the whole first epoch.
        nn.init.normal_(self.head.weight, std=1 / widths[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (N, C, H, W) -> logits (N, num_classes)."""
        x = self.stages(self.stem_act(self.stem(images)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits

    @torch.no_grad()
    def init_from_data_(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the stem's filters to those that whiten the images' patches, and their negatives.

        The whitening filters are the eigenvectors of the patches' second moments, each divided by
        the root of its eigenvalue + eps. images: normalised (N, C, H, W), a few thousand. Source:
        Page, "How to train your ResNet", part 8; eps from arXiv:2404.00498.
        """
        k = self.stem.kernel_size[0]
        patches = images.unfold(2, k, 1).unfold(3, k, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
        patches = patches.flatten(0, 2).double()  # (patches, C k k)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + eps).sqrt()).T.reshape(-1, images.shape[1], k, k)
        self.stem.weight.copy_(torch.cat((filters, -filters)))


class Stage(nn.Module):
    """conv, 2x2 max-pool, BN, act, then conv, BN, act: (N, i, H, W) -> (N, o, H // 2, W // 2)."""

    def __init__(self, i: int, o: int, config: SpeedNetConfig) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(i, o), _batch_norm(o)
        self.later = [(f"conv{k}", f"norm{k}") for k in range(2, config.depth + 1)]
        for conv, norm in self.later:
            self.add_module(conv, _conv(o, o))
            self.add_module(norm, _batch_norm(o))
        self.pool, self.act = nn.MaxPool2d(2), ACTIVATIONS[config.activation]()
        self.residual = config.residual

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.act(self.norm1(self.pool(self.conv1(x))))
        y = pooled
        for conv, norm in self.later:
            y = self.get_submodule(norm)(self.get_submodule(conv)(y))
            last = self.residual and conv == self.later[-1][0]
            y = self.act(y + pooled if last else y)
        return y


def _conv(i: int, o: int) -> nn.Conv2d:
    conv = nn.Conv2d(i, o, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:i])  # a partial identity: the first filters copy their input
    return conv


def _batch_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-6, momentum=0.2)
    norm.weight.requires_grad_(False)  # Muon resets the next filters' norm: a scale has no effect
    return norm
