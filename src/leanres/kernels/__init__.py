"""Our own kernels, behind one function. Delete this folder and everything still runs, slower."""

from __future__ import annotations

import torch
from torch import nn

from leanres.kernels import build
from leanres.kernels.fuse import fused
from leanres.kernels.pad_channels import pad_channels
from leanres.kernels.strided import subsample_before_narrow_convs
from leanres.kernels.tiled_conv import TiledConv
from leanres.kernels.winograd import Winograd


def accelerate(
    model: nn.Module, device: str, precision: str, compiled: bool = False
) -> tuple[nn.Module, str]:
    """(what to call in place of `model`, which kernels compute it, in words).

    The module returned holds the model's own parameters and buffers, so that training it trains
    `model`; it computes the same up to the order of summation, forward and backward. It is the
    model itself where nothing here is faster.
    """
    kind = torch.device(device).type
    if kind == "cuda" and compiled and precision == "bfloat16":
        return pad_channels(model), "torch.compile, channels padded"
    if kind == "cpu":
        model = subsample_before_narrow_convs(model)
    if compiled or kind != "cpu":
        return model, "torch.compile" if compiled else "PyTorch's"
    if precision == "bfloat16":
        return TiledConv(fused(model)), build.describe("AMX" if build.has_tiles() else "")
    if build.has_fma():
        return Winograd(model), build.describe()
    return model, build.describe()
