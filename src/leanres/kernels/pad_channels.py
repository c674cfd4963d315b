"""Channels padded to multiples of eight on a GPU, as its tensor cores load them.

Each convolution pads its filters with zeros as it multiplies. The maps carry the extra channels,
all zeros, and the last layer drops them. Parameters, gradients and running statistics keep the
network's own shapes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from leanres.models.resnet import BasicBlock, ResNet
from leanres.models.swap_layers import swap_layers

MULTIPLE = 8  # bfloat16 values in the 16 bytes that a tensor core loads at once


class _PaddedConv(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        out, in_ = self.weight.shape[:2]
        extra = -out % MULTIPLE
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, images.shape[1] - in_, 0, extra))
        bias = None if self.bias is None else F.pad(self.bias, (0, extra))
        maps: Tensor = self._conv_forward(images, weight, bias)
        return maps


class _PaddedNorm(nn.BatchNorm2d):
    def forward(self, images: Tensor) -> Tensor:
        extra = images.shape[1] - self.num_features
        if not extra:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        mean = F.pad(self.running_mean, (0, extra))
        var = F.pad(self.running_var, (0, extra), value=1)
        weight, bias = F.pad(self.weight, (0, extra)), F.pad(self.bias, (0, extra))
        out = F.batch_norm(images, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training:
            self.running_mean.copy_(mean[: self.num_features])
            self.running_var.copy_(var[: self.num_features])
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        return out


class _UnpaddedLinear(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, : self.in_features])


PADDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _PaddedConv,
    nn.BatchNorm2d: _PaddedNorm,
    nn.Linear: _UnpaddedLinear,
}
CHANNELWISE = (  # modules that compute each channel alike, whatever their number
    ResNet,
    BasicBlock,
    nn.Sequential,
    nn.Identity,
    nn.ReLU,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
)


def pad_channels(model: nn.Module) -> nn.Module:
    """A clone that pads its channels, over the same parameters and buffers.

    `model` itself where its channels are multiples of eight already, or where it has modules that
    may not compute the same with more channels.
    """
    known = all(type(m) in PADDED or type(m) in CHANNELWISE for m in model.modules())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if not known or all(m.out_channels % MULTIPLE == 0 for m in convolutions):
        return model
    return swap_layers(model, lambda module: PADDED.get(type(module)))
