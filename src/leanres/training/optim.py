"""Parameter groups, OPTIMIZERS and SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanres.tables import Table
from leanres.training.muon import Muon


class OptimSettings(Protocol):
    """What an optimizer reads of a recipe (Recipe documents each)."""

    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def nesterov(self) -> bool: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def decay_all(self) -> bool: ...
    @property
    def bias_lr(self) -> float: ...
    @property
    def head_lr(self) -> float: ...


Groups = dict[str, list[Tensor]]


def parameter_groups(model: nn.Module) -> Groups:
    """Trainable parameters by their part: convolution `filters`, `matrices`, and the `rest`.

    The rest is everything of one dimension or none: biases and norm scales.
    """
    groups: Groups = {"filters": [], "matrices": [], "rest": []}
    for p in model.parameters():
        if p.requires_grad:
            groups["filters" if p.ndim == 4 else "matrices" if p.ndim == 2 else "rest"].append(p)
    return groups


def _decayed(model: nn.Module, s: OptimSettings) -> list[dict[str, Any]]:
    parts = parameter_groups(model)
    rest = s.weight_decay if s.decay_all else 0.0
    groups = [
        {"params": parts["filters"] + parts["matrices"], "weight_decay": s.weight_decay},
        {"params": parts["rest"], "weight_decay": rest},
    ]
    return [g for g in groups if g["params"]]


def _sgd(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    groups = _decayed(model, s)
    return [torch.optim.SGD(groups, s.lr, s.momentum, nesterov=s.nesterov and s.momentum > 0)]


def _adam(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    return [torch.optim.Adam(_decayed(model, s), s.lr, s.betas)]


def _adamw(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    return [torch.optim.AdamW(_decayed(model, s), s.lr, s.betas)]


def _muon(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    # AdamW for what is no filter: its steps have the size of the lr at any width, while SGD wants
    # biases at 30,000 times the classifier's lr on one network and diverges there on the next.
    parts = parameter_groups(model)
    decay = s.weight_decay
    groups = [
        {"params": parts["rest"], "lr": s.bias_lr, "weight_decay": decay if s.decay_all else 0.0},
        {"params": parts["matrices"], "lr": s.head_lr, "weight_decay": decay},
    ]
    others = torch.optim.AdamW([g for g in groups if g["params"]], betas=s.betas)
    return [Muon(parts["filters"], s.lr, s.momentum), others]


OPTIMIZERS: Table[Callable[[nn.Module, OptimSettings], list[Optimizer]]] = Table(
    "optimizer", {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "muon": _muon}
)

# progress in [0, 1] -> factor of the peak lr.
SCHEDULES: Table[Callable[[float], float]] = Table(
    "schedule",
    {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    },
)


def lr_factor(schedule: str, step: int, total: int, warmup: int = 0) -> float:
    """The share of the peak lr at `step` of `total`: a linear rise over `warmup` steps, then down.

    The rise reaches 1 at its last step, so that no step is lost at lr 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[schedule]((step - warmup) / max(1, total - warmup))


def set_lr_(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's lr to `factor` times the one it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])
