"""Where a network's layers go together: the twin that trains by the kernels of `training.fused`."""

from __future__ import annotations

from torch import Tensor, nn

from leanres.kernels.build import library
from leanres.kernels.clone import clone_sharing_parameters
from leanres.kernels.convolve import fits
from leanres.kernels.fused import FusedAddNormAct, FusedConvPoolNormAct, FusedGELU, FusedPoolNormAct
from leanres.models.resnet import BasicBlock, WideBlock
from leanres.models.speednet import SpeedNet, Stage


class _JoinedBlock(BasicBlock):
    """A BasicBlock whose `norm2` is a FusedAddNormAct."""

    def forward(self, images: Tensor) -> Tensor:
        inner = self.conv2(self.relu1(self.norm1(self.conv1(images))))
        out: Tensor = self.norm2(inner, self.shortcut(images))
        return out


class _JoinedStage(Stage):
    """A residual Stage whose last norm is a FusedAddNormAct; the others activate."""

    def forward(self, images: Tensor) -> Tensor:
        y = pooled = self.norm1(self.pool(self.conv1(images)))
        for conv, norm in self.later[:-1]:
            y = self.get_submodule(norm)(self.get_submodule(conv)(y))
        conv, norm = self.later[-1]
        out: Tensor = self.get_submodule(norm)(self.get_submodule(conv)(y), pooled)
        return out


def fused(model: nn.Module) -> nn.Module:
    """A network to train `model` by: it holds the same parameters and buffers, and does pooling,
    batch norm and activation together. `model` itself where the kernels cannot be had.
    """
    if library() is None:
        return model
    twin = clone_sharing_parameters(model)
    for module in list(twin.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_sequence_(module)
        elif isinstance(module, BasicBlock | WideBlock):
            _fuse_block_(module)
        elif isinstance(module, Stage):
            _fuse_stage_(module)
        elif isinstance(module, SpeedNet) and _gelu(module.stem_act):
            module.stem_act = FusedGELU()
    return twin


def _fits(norm: nn.Module) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


def _gelu(module: nn.Module | None) -> bool:
    return type(module) is nn.GELU and module.approximate == "none"


def _act(module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU or _gelu(module)


def _halves(module: nn.Module) -> bool:
    plain = (2, 2, 0, 1, False, False)
    return isinstance(module, nn.MaxPool2d) and plain == (
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        module.return_indices,
    )


def _plain(conv: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or conv.bias is not None or isinstance(conv.padding, str):
        return False
    return conv.padding_mode == "zeros" and fits(
        conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _fuse_sequence_(layers: nn.Sequential) -> None:
    for i, norm in enumerate(layers):
        if not _fits(norm):
            continue
        after = layers[i + 1] if i + 1 < len(layers) else None
        act = after if _act(after) else None
        pool = i > 0 and _halves(layers[i - 1])
        assert isinstance(norm, nn.BatchNorm2d)
        conv = layers[i - 2] if pool and i > 1 else None
        if conv is not None and _plain(conv):
            assert isinstance(conv, nn.Conv2d)
            layers[i - 2], layers[i] = nn.Identity(), FusedConvPoolNormAct(conv, norm, act)
        else:
            layers[i] = FusedPoolNormAct(norm, act, pool)
        if act is not None:
            layers[i + 1] = nn.Identity()
        if pool:
            layers[i - 1] = nn.Identity()


def _fuse_block_(block: BasicBlock | WideBlock) -> None:
    _fuse_pair_(block, "norm1", "relu1")
    if isinstance(block, WideBlock):
        _fuse_pair_(block, "norm2", "relu2")
    elif block.tail is None and type(block) is BasicBlock and _fits(block.norm2):
        block.norm2 = FusedAddNormAct(block.norm2, nn.ReLU())  # type: ignore[assignment]
        block.__class__ = _JoinedBlock
    else:
        _fuse_pair_(block, "norm2")


def _fuse_pair_(block: nn.Module, name: str, following: str = "") -> None:
    norm, act = getattr(block, name), getattr(block, following, None)
    if _fits(norm):
        setattr(block, name, FusedPoolNormAct(norm, act if _act(act) else None))
        if _act(act):
            setattr(block, following, nn.Identity())


def _fuse_stage_(stage: Stage) -> None:
    names = ("norm1", *(norm for _, norm in stage.later))
    norms = [stage.get_submodule(name) for name in names]
    if not all(_fits(norm) for norm in norms):
        return
    act, pool = stage.act if _act(stage.act) else None, _halves(stage.pool)
    for name, norm in zip(names, norms, strict=True):
        assert isinstance(norm, nn.BatchNorm2d)
        if name == "norm1" and pool and _plain(stage.conv1):
            stage.conv1 = FusedConvPoolNormAct(stage.conv1, norm, act)  # type: ignore[assignment]
            stage.norm1 = nn.Identity()  # type: ignore[assignment]
        elif stage.residual and act is not None and name == names[-1]:
            stage.add_module(name, FusedAddNormAct(norm, act))
            stage.__class__ = _JoinedStage
        else:
            stage.add_module(name, FusedPoolNormAct(norm, act, pool and name == "norm1"))
    if pool:
        stage.pool = nn.Identity()  # type: ignore[assignment]
    if act is not None:
        stage.act = nn.Identity()
