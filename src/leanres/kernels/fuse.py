"""Rewire a network for training in bfloat16 on a CPU: neighbouring layers become fused ones.

Where a batch norm stands in a network decides what it is fused with:

    Sequential     [conv, max-pool,] norm [, activation]
    BasicBlock     norm1 + relu1;  norm2 + shortcut + relu2
    WideBlock      norm1 + relu1;  norm2 + relu2
    Stage          [conv1, max-pool,] norm1 + activation;  each later norm + activation,
                   the last one of a residual stage with the sum before it

The convolution is only fused where AMX computes it. Others stay as they are, and layers that were
fused into another one become `nn.Identity`.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from leanres.kernels.amx_conv import amx_supports
from leanres.kernels.build import library
from leanres.kernels.fused_layers import (
    FusedAddNormAct,
    FusedConvPoolNormAct,
    FusedGELU,
    FusedPoolNormAct,
)
from leanres.models.resnet import BasicBlock, WideBlock
from leanres.models.speednet import SpeedNet, Stage
from leanres.models.swap_layers import clone_sharing_parameters


class _FusedBasicBlock(BasicBlock):
    """A BasicBlock whose `norm2` is a FusedAddNormAct."""

    def forward(self, images: Tensor) -> Tensor:
        inner = self.conv2(self.relu1(self.norm1(self.conv1(images))))
        out: Tensor = self.norm2(inner, self.shortcut(images))
        return out


class _FusedResidualStage(Stage):
    """A residual Stage whose last norm is a FusedAddNormAct; the norms before it activate too."""

    def forward(self, images: Tensor) -> Tensor:
        y = pooled = self.norm1(self.pool(self.conv1(images)))
        for conv, norm in self.later[:-1]:
            y = self.get_submodule(norm)(self.get_submodule(conv)(y))
        conv, norm = self.later[-1]
        out: Tensor = self.get_submodule(norm)(self.get_submodule(conv)(y), pooled)
        return out


def fuse_layers(model: nn.Module) -> nn.Module:
    """A clone with fused layers over the same parameters; `model` itself without own kernels."""
    if library() is None:
        return model
    clone = clone_sharing_parameters(model)
    for module in list(clone.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_sequence_(module)
        elif isinstance(module, BasicBlock | WideBlock):
            _fuse_block_(module)
        elif isinstance(module, Stage):
            _fuse_stage_(module)
        elif isinstance(module, SpeedNet) and _is_gelu(module.stem_act):
            module.stem_act = FusedGELU().train(module.stem_act.training)
    return clone


def _is_usual_norm(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    usual = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats
    return usual and norm.momentum is not None


def _is_gelu(module: nn.Module | None) -> bool:
    return type(module) is nn.GELU and module.approximate == "none"


def _is_act(module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU or _is_gelu(module)


def _is_2x2_pool(module: nn.Module) -> bool:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    usual = [2, 2, 0, 1, False, False]
    return type(module) is nn.MaxPool2d and [getattr(module, name) for name in names] == usual


def _is_amx_conv(conv: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    if type(conv) is not nn.Conv2d or conv.bias is not None or isinstance(conv.padding, str):
        return False
    return conv.padding_mode == "zeros" and amx_supports(
        conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _fuse_sequence_(layers: nn.Sequential) -> None:
    for i, norm in enumerate(layers):
        if not _is_usual_norm(norm):
            continue
        after = layers[i + 1] if i + 1 < len(layers) else None
        act = after if _is_act(after) else None
        pool = i > 0 and _is_2x2_pool(layers[i - 1])
        conv = layers[i - 2] if pool and i > 1 else None
        if _is_amx_conv(conv):
            layers[i - 2], layers[i] = nn.Identity(), FusedConvPoolNormAct(conv, norm, act)
        else:
            layers[i] = FusedPoolNormAct(norm, act, pool)
        if act is not None:
            layers[i + 1] = nn.Identity()
        if pool:
            layers[i - 1] = nn.Identity()


def _fuse_block_(block: BasicBlock | WideBlock) -> None:
    _fuse_norm_(block, "norm1", "relu1")
    if isinstance(block, WideBlock):
        _fuse_norm_(block, "norm2", "relu2")
    elif block.tail is None and type(block) is BasicBlock and _is_usual_norm(block.norm2):
        block.norm2 = FusedAddNormAct(block.norm2, nn.ReLU())  # type: ignore[assignment]
        block.__class__ = _FusedBasicBlock
    else:
        _fuse_norm_(block, "norm2")


def _fuse_norm_(block: nn.Module, name: str, act_name: str = "") -> None:
    norm, act = getattr(block, name), getattr(block, act_name, None)
    if _is_usual_norm(norm):
        setattr(block, name, FusedPoolNormAct(norm, act if _is_act(act) else None))
        if _is_act(act):
            setattr(block, act_name, nn.Identity())


def _fuse_stage_(stage: Stage) -> None:
    names = ("norm1", *(norm for _, norm in stage.later))
    act, pool = stage.act if _is_act(stage.act) else None, _is_2x2_pool(stage.pool)
    norms = {name: stage.get_submodule(name) for name in names}
    if not all(map(_is_usual_norm, norms.values())):
        return
    for name, norm in norms.items():
        assert isinstance(norm, nn.BatchNorm2d)
        if name == "norm1" and pool and _is_amx_conv(stage.conv1):
            stage.conv1 = FusedConvPoolNormAct(stage.conv1, norm, act)  # type: ignore[assignment]
            stage.norm1 = nn.Identity()  # type: ignore[assignment]
        elif stage.residual and act is not None and name == names[-1]:
            stage.add_module(name, FusedAddNormAct(norm, act))
            stage.__class__ = _FusedResidualStage
        else:
            stage.add_module(name, FusedPoolNormAct(norm, act, pool and name == "norm1"))
    if pool:
        stage.pool = nn.Identity()  # type: ignore[assignment]
    if act is not None:
        stage.act = nn.Identity()
