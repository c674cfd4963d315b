"""Our own kernels, behind one function. Without this folder everything still runs, but slower."""

from __future__ import annotations

import torch
from torch import nn

from leanres.kernels.build import has_amx, library, problem, simd
from leanres.kernels.conv_mode import NetworkInMode
from leanres.kernels.fuse import fuse_layers
from leanres.kernels.pad_channels import pad_channels
from leanres.kernels.tiled_conv import tiled_convolve
from leanres.kernels.winograd import winograd_convolve


def accelerate(
    model: nn.Module, device: str, precision: str, compiled: bool = False
) -> tuple[nn.Module, str]:
    """The network by faster kernels, and which kernels compute it, in words.

    `model` is left as it is; the module returned may be called in its place. It holds the same
    parameters and buffers, so that training it trains `model`, and computes the same up to the
    order of summation, forward and backward, in training and in evaluation mode. Where nothing
    here is faster it is `model` itself.

    `compiled`: whether the caller compiles the module returned with torch.compile.

        GPU, compiled, bfloat16   channels padded to multiples of eight
        CPU, bfloat16             fused layers, small maps side by side, convolutions by AMX
        CPU, float32              convolutions by Winograd's algorithm
    """
    kind = torch.device(device).type
    if compiled:
        pads = kind == "cuda" and precision == "bfloat16"
        return pad_channels(model) if pads else model, "torch.compile"
    if kind != "cpu":
        return model, "PyTorch's"
    kernels = f"PyTorch's: {problem()}" if problem() else f"own, {simd()}"
    if precision == "bfloat16":
        kernels = "own, AMX" if has_amx() else kernels
        return NetworkInMode(fuse_layers(model), tiled_convolve), kernels
    if library() is None:
        return model, kernels
    return NetworkInMode(model, winograd_convolve), kernels
