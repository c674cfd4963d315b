"""Fine-tuning: weights of another training, frozen layers, learning rates that fall with depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.preprocess import Preprocess
from leanres.registry import unknown
from leanres.training.optim import classifier_parameters


@dataclass(frozen=True)
class Pretrained:
    """A trained network: its config, its weights by name, and its preprocessing."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    preprocess: Preprocess


def layer_names(model: nn.Module) -> list[str]:
    """The layers that have parameters, in the order of the network.

    They are its children; a container of blocks counts block by block, as "stages.0".
    """
    names: list[str] = []
    for name, child in model.named_children():
        if not any(True for _ in child.parameters()):
            continue
        blocks = list(child.named_children()) if _holds_blocks(child) else []
        parts = [f"{name}.{own}" for own, block in blocks if any(True for _ in block.parameters())]
        names += parts or [name]
    return names


def _holds_blocks(child: nn.Module) -> bool:
    deep = any(any(True for _ in part.children()) for part in child.children())
    return isinstance(child, nn.Sequential | nn.ModuleList) and deep


def fitting(
    model: nn.Module, known: Pretrained, classes: tuple[str, ...]
) -> tuple[set[str], set[str]]:
    """The names of the model's tensors that are loaded, and of those that stay new.

    The classifier is loaded only where the classes are the same, the first layer only where the
    images have as many channels.
    """
    own, new = model.state_dict(), set[int]()
    if known.preprocess.classes != classes:
        new = {id(p) for p in classifier_parameters(model)}
    heads = {name for name, p in model.named_parameters() if id(p) in new}
    theirs = {name: tensor.shape for name, tensor in known.tensors.items()}
    loaded = {name for name in own if theirs.get(name) == own[name].shape} - heads
    return loaded, own.keys() - loaded


def load_pretrained_(model: nn.Module, known: Pretrained, classes: tuple[str, ...]) -> None:
    """Copy the weights that fit into `model`."""
    own = model.state_dict()
    with torch.no_grad():
        for name in fitting(model, known, classes)[0]:
            own[name].copy_(known.tensors[name])


def frozen_layers(model: nn.Module, freeze: str | float) -> list[str]:
    """The layers that `freeze` means: names as "stem, stages.0", or a share, the first ones.

    "stage1" is "stages.0". The last layer is never frozen by a share. UserError for other names.
    """
    names = layer_names(model)
    if not isinstance(freeze, str):
        return names[: min(round(freeze * len(names)), len(names) - 1)]
    modules, found = dict(model.named_modules()), []
    for word in filter(None, (word.strip() for word in freeze.split(","))):
        name = word
        if word not in modules and word.removeprefix("stage").isdigit():
            name = f"stages.{int(word.removeprefix('stage')) - 1}"
        if name not in modules:
            raise UserError(f"freeze: {unknown('layer', word, names)}")
        found.append(name)
    return found


def freeze_layers_(model: nn.Module, freeze: str | float) -> None:
    """Stop training these layers. UserError where nothing is left to train."""
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the network has no parameters to train: give it layers with weights")
    for name in frozen_layers(model, freeze):
        model.get_submodule(name).requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"freeze = {freeze!r} leaves nothing to train: leave a layer out")


def freeze_statistics_(model: nn.Module, freeze: str | float) -> None:
    """Put frozen layers into eval mode, so that their norms keep their running statistics."""
    for name in frozen_layers(model, freeze):
        model.get_submodule(name).eval()


def scale_lr_by_depth_(optimizers: list[Optimizer], model: nn.Module, decay: float) -> None:
    """Multiply learning rates by `decay` per layer from the last one: discriminative rates.

    Howard & Ruder 2018, arXiv:1801.06146, section 3.2. Each group is split by layer.
    """
    names = layer_names(model)
    depth = {
        id(p): len(names) - 1 - i
        for i, name in enumerate(names)
        for p in model.get_submodule(name).parameters()
    }
    for optimizer in optimizers:
        groups = []
        for group in optimizer.param_groups:
            by_depth: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                by_depth.setdefault(depth.get(id(p), len(names) - 1), []).append(p)
            groups += [
                {**group, "params": own, "lr": group["lr"] * decay**d}
                for d, own in by_depth.items()
            ]
        optimizer.param_groups = groups
