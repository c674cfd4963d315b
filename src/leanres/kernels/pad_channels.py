"""Channels in multiples of eight, as tensor cores want them, for networks that have others.

Filters get zeros beside them while they are multiplied; the network, its gradients and its running
statistics stay as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from leanres.kernels.clone import clone_sharing_parameters
from leanres.models.resnet import BasicBlock, ResNet

MULTIPLE = 8  # bfloat16 values in the 16 bytes that a tensor core loads at once


class _Conv(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        out, in_ = self.weight.shape[:2]
        more = -out % MULTIPLE
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, images.shape[1] - in_, 0, more))
        bias = None if self.bias is None else F.pad(self.bias, (0, more))
        maps: Tensor = self._conv_forward(images, weight, bias)
        return maps


class _Norm(nn.BatchNorm2d):
    def forward(self, images: Tensor) -> Tensor:
        more = images.shape[1] - self.num_features
        if not more:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = F.pad(self.running_mean, (0, more)), F.pad(self.running_var, (0, more), value=1)
        weight, bias = F.pad(self.weight, (0, more)), F.pad(self.bias, (0, more))
        assert self.momentum is not None
        out = F.batch_norm(images, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if not self.training:
            return out
        self.running_mean.copy_(mean[: self.num_features])
        self.running_var.copy_(var[: self.num_features])
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return out


class _Linear(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, : self.in_features])


PADDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv,
    nn.BatchNorm2d: _Norm,
    nn.Linear: _Linear,
}
UNTOUCHED = (  # what treats every channel alike
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
    """A network to train `model` by: it holds the same parameters and buffers, and computes the
    same with zeros beside its channels. `model` itself where that helps nothing, or is not known
    to be the same.
    """
    modules = [type(m) for m in model.modules()]
    known = all(kind in PADDED or kind in UNTOUCHED for kind in modules)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if not known or all(m.out_channels % MULTIPLE == 0 for m in convolutions):
        return model
    twin = clone_sharing_parameters(model)
    for module in twin.modules():
        module.__class__ = PADDED.get(type(module), type(module))
    return twin
