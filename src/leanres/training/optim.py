"""Parameter groups, and OPTIMIZERS: one function and one table entry each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanres.errors import UserError
from leanres.registry import Table
from leanres.training.device import DEVICES
from leanres.training.muon import Muon

if TYPE_CHECKING:
    from leanres.training.recipe import Recipe

Groups = dict[str, list[Tensor]]
# Used if a recipe gives none: PyTorch's defaults; those of the speed records for Muon's AdamW.
ADAM_BETAS, MUON_ADAMW_BETAS = (0.9, 0.999), (0.85, 0.95)


def parameter_groups(model: nn.Module) -> Groups:
    """Trainable parameters by their part: convolution `filters`, `matrices`, and the `rest`.

    The rest is everything of one dimension or none: biases and norm scales.
    """
    groups: Groups = {"filters": [], "matrices": [], "rest": []}
    for p in model.parameters():
        if p.requires_grad:
            groups["filters" if p.ndim == 4 else "matrices" if p.ndim == 2 else "rest"].append(p)
    return groups


def _decayed(model: nn.Module, s: Recipe) -> list[dict[str, Any]]:
    parts = parameter_groups(model)
    rest = s.weight_decay if s.decay_all else 0.0
    groups = [
        {"params": parts["filters"] + parts["matrices"], "weight_decay": s.weight_decay},
        {"params": parts["rest"], "weight_decay": rest},
    ]
    return [g for g in groups if g["params"]]


def classifier_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters of the last linear layer; none where there is no such layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return list(layers[-1].parameters()) if layers else []


def _fused(model: nn.Module) -> bool:
    return DEVICES[next(model.parameters()).device.type].fused_optimizers


def _fused_options(model: nn.Module) -> dict[str, bool]:
    """On a GPU: one kernel for all parameters, and a step that can be captured."""
    return {"fused": True, "capturable": True} if _fused(model) else {}


def _sgd(model: nn.Module, s: Recipe) -> list[Optimizer]:
    groups = _decayed(model, s)
    if s.head_scale != 1:
        # With W = scale * V, a step of lr on V is one of scale^2 * lr on W; lr * decay is the same.
        square = s.head_scale**2
        head = {id(p) for p in classifier_parameters(model)}
        for g in tuple(groups):
            theirs = [p for p in g["params"] if id(p) in head]
            g["params"] = [p for p in g["params"] if id(p) not in head]
            decay = g["weight_decay"] / square
            groups.append({"params": theirs, "lr": s.lr * square, "weight_decay": decay})
        groups = [g for g in groups if g["params"]]
    nesterov = s.nesterov and s.momentum > 0
    return [
        torch.optim.SGD(groups, s.lr, s.momentum, nesterov=nesterov, fused=_fused(model) or None)
    ]


def _adam(model: nn.Module, s: Recipe) -> list[Optimizer]:
    betas = s.betas or ADAM_BETAS
    return [torch.optim.Adam(_decayed(model, s), s.lr, betas, **_fused_options(model))]


def _adadelta(model: nn.Module, s: Recipe) -> list[Optimizer]:
    return [torch.optim.Adadelta(_decayed(model, s), s.lr, capturable=_fused(model))]


def _adamw(model: nn.Module, s: Recipe) -> list[Optimizer]:
    betas = s.betas or ADAM_BETAS
    return [torch.optim.AdamW(_decayed(model, s), s.lr, betas, **_fused_options(model))]


def _muon(model: nn.Module, s: Recipe) -> list[Optimizer]:
    # AdamW for all other parameters: its steps have the size of the lr at any width; SGD wants
    # biases at 30,000 times the classifier's lr on one network and diverges there on the next.
    # A step of the classifier moves a logit by the sum over its inputs, hence the division: ten
    # times this rate cost 12 points of training accuracy in the first epoch (docs/log.md).
    parts = parameter_groups(model)
    decay = s.adamw_weight_decay
    groups = [
        {"params": parts["rest"], "lr": s.bias_lr, "weight_decay": decay if s.decay_all else 0.0},
        *(
            {"params": [p], "lr": s.head_lr / p.shape[1], "weight_decay": decay}
            for p in parts["matrices"]
        ),
    ]
    betas = s.betas or MUON_ADAMW_BETAS
    made: list[Optimizer] = []
    if parts["filters"]:
        made.append(Muon(parts["filters"], s.lr, s.momentum))
    if groups := [g for g in groups if g["params"]]:
        made.append(torch.optim.AdamW(groups, betas=betas, **_fused_options(model)))
    return made


OPTIMIZERS: Table[Callable[[nn.Module, Recipe], list[Optimizer]]] = Table(
    "optimizer",
    {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "adadelta": _adadelta, "muon": _muon},
    takes=("model", "recipe"),
)


def optimizers_of(model: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """The recipe's optimizers. UserError where its function, perhaps the user's, gives none."""
    made: object = OPTIMIZERS[recipe.optimizer](model, recipe)
    if not isinstance(made, list) or not made or not all(isinstance(o, Optimizer) for o in made):
        raise UserError(
            f"optimizer {recipe.optimizer} returned {type(made).__name__}: return a list of"
            " torch.optim optimizers"
        )
    return made


def set_lr_(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's lr to `factor` times the one it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])


def set_momentum_(optimizers: list[Optimizer], momentum: float) -> None:
    """Set every group's momentum; of Adam that is the first of its betas."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = momentum
