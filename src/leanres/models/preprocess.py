"""Preprocessing of a network's input, and the class names of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.registry import Convert, Range, check_class_names, check_fields, check_whites

Channels = tuple[float, ...]  # one number each


@dataclass(frozen=True)
class Preprocess:
    """The image size and normalisation that a network was trained with, and its class names.

    Raises `UserError` for values that do not fit, such as images without any contrast.
    """

    size: Annotated[int, Range(1, 4096)]  # side of the images in pixels
    mean: Annotated[Channels, Range(0, 1)]  # of pixels in [0, 1]
    std: Annotated[Channels, Range(1e-6, 1)]
    classes: tuple[str, ...]
    # Of grey image files: the value that is shown white, by kind (integer of more than 8 bits, or
    # float). Without one, each image's own values decide.
    whites: Annotated[Mapping[str, float], Convert(check_whites)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.mean) == len(self.std):
            came = f"{len(self.mean)} means, {len(self.std)} deviations"
            raise UserError(f"{came}: give one of each per channel")
        check_class_names(self.classes)

    @property
    def channels(self) -> int:
        """C: 1 for grey images, 3 for RGB, 4 for RGBA."""
        return len(self.mean)


def check_fit(images: Tensor, preprocess: Preprocess) -> None:
    """UserError for images (N, C, H, W) of another size or number of channels than the network's.

    It names both.
    """
    channels, size = preprocess.channels, preprocess.size
    if images.shape[1:] != (channels, size, size):
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"images of {shape}: the network takes {channels}x{size}x{size}; load them with"
            f" size={size}, channels={channels}"
        )


class Normalize(nn.Module):
    """(x / 255 - mean) / std per channel.

    (N, C, H, W) uint8, or float in [0, 255] -> float32 of the same shape, channels last.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        # Convert the layout last: with channels last, the innermost loop would have C elements,
        # too few for vector instructions.
        floats = (images.to(torch.float32) - self.shift) * self.scale
        return floats.contiguous(memory_format=torch.channels_last)


class ImageClassifier(nn.Module):
    """A network with its normalisation: uint8 images (N, C, H, W) -> logits (N, K).

    precision: "float32" or "bfloat16", in which it was measured. temperature: what the network's
    own logits are divided by, fitted so that its probabilities are calibrated; 1: as trained.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        precision: str = "float32",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.preprocess, self.precision = model, preprocess, precision
        self.temperature = temperature
        self.normalize = Normalize(preprocess.mean, preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.calibrated(self.model(self.normalize(images)))

    def calibrated(self, logits: Tensor) -> Tensor:
        """The network's own logits (N, K), divided by the temperature."""
        return logits if self.temperature == 1 else logits / self.temperature
