"""timm's networks in leanres: one function each (pip install timm).

leanres train small-data --plugin examples/timm_networks.py --model timm_networks:mobilenet
"""

import timm
from torch import nn


def resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """As made for ImageNet: its first layers shrink a small image by 4."""
    return timm.create_model("resnet18", num_classes=num_classes, in_chans=in_channels)


def mobilenet(num_classes: int, in_channels: int) -> nn.Module:
    """Half a million parameters."""
    return timm.create_model("mobilenetv3_small_050", num_classes=num_classes, in_chans=in_channels)


def vit(num_classes: int, in_channels: int) -> nn.Module:
    """A vision transformer for images of 32 px, in patches of 4."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=4,
        num_classes=num_classes,
        in_chans=in_channels,
    )
