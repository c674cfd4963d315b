"""Parameter groups, OPTIMIZERS and SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanres.augment.registry import Step
from leanres.errors import UserError
from leanres.registry import Table
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
    def head_scale(self) -> float: ...
    @property
    def bias_lr(self) -> float: ...
    @property
    def head_lr(self) -> float: ...
    @property
    def adamw_weight_decay(self) -> float: ...


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


def classifier(model: nn.Module) -> list[Tensor]:
    """The parameters of the last linear layer; none where there is no such layer."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return list(layers[-1].parameters()) if layers else []


def _cuda(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _kernels(model: nn.Module) -> dict[str, bool]:
    """On a GPU: one kernel for all parameters, and a step that can be captured."""
    return {"fused": True, "capturable": True} if _cuda(model) else {}


def _sgd(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    groups = _decayed(model, s)
    if s.head_scale != 1:
        # With W = scale * V, a step of lr on V is one of scale^2 * lr on W; lr * decay is the same.
        square = s.head_scale**2
        head = {id(p) for p in classifier(model)}
        for g in tuple(groups):
            theirs = [p for p in g["params"] if id(p) in head]
            g["params"] = [p for p in g["params"] if id(p) not in head]
            decay = g["weight_decay"] / square
            groups.append({"params": theirs, "lr": s.lr * square, "weight_decay": decay})
        groups = [g for g in groups if g["params"]]
    nesterov = s.nesterov and s.momentum > 0
    return [
        torch.optim.SGD(groups, s.lr, s.momentum, nesterov=nesterov, fused=_cuda(model) or None)
    ]


def _adam(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    return [torch.optim.Adam(_decayed(model, s), s.lr, s.betas, **_kernels(model))]


def _adadelta(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    return [torch.optim.Adadelta(_decayed(model, s), s.lr, capturable=_cuda(model))]


def _adamw(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    return [torch.optim.AdamW(_decayed(model, s), s.lr, s.betas, **_kernels(model))]


def _muon(model: nn.Module, s: OptimSettings) -> list[Optimizer]:
    # AdamW for what is no filter: its steps have the size of the lr at any width, while SGD wants
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
    others = torch.optim.AdamW([g for g in groups if g["params"]], betas=s.betas, **_kernels(model))
    return [Muon(parts["filters"], s.lr, s.momentum), others]


OPTIMIZERS: Table[Callable[[nn.Module, OptimSettings], list[Optimizer]]] = Table(
    "optimizer",
    {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "adadelta": _adadelta, "muon": _muon},
)


class Clock(NamedTuple):
    """Where in training a schedule is asked for its factor; steps count from 0."""

    step: int
    total: int  # steps of the schedule
    epoch_steps: int  # steps of an epoch
    lr: float  # the peak, which factors are shares of

    @property
    def progress(self) -> float:
        """The share of training done, below 1."""
        return self.step / max(1, self.total)


def _constant(at: Clock) -> float:
    return 1.0


def _linear(at: Clock) -> float:
    return 1 - at.progress


def _cosine(at: Clock, *, per_epoch: bool = False) -> float:
    """Half a cosine from the peak to 0; `per_epoch` holds it within an epoch. arXiv:1608.03983."""
    begun = at.step - at.step % at.epoch_steps if per_epoch else at.step
    return 0.5 * (1 + math.cos(math.pi * begun / max(1, at.total)))


def _steps(at: Clock, *, every_epochs: int = 20, gamma: float = 0.1) -> float:
    """Times `gamma` after every so many epochs."""
    return gamma ** (at.step // at.epoch_steps // every_epochs)


def _one_cycle(
    at: Clock,
    *,
    peak_epoch: float = 5.0,
    lr_min: float | None = None,
    annihilation: bool = False,
    shape: str = "linear",
) -> float:
    """Rise from lr_min to the peak, reached `peak_epoch` epochs in, then fall to the last step.

    `lr_min` None: 1/25 of the peak. The fall ends at lr_min, or with `annihilation` at 1e-4 of
    it. shape: "linear" or "cosine". arXiv:1708.07120; phases as in PyTorch's OneCycleLR.
    """
    low = 1 / 25 if lr_min is None else lr_min / at.lr
    if low > 1:
        raise UserError(f"schedule one-cycle: lr_min = {lr_min} is above lr = {at.lr:g}")
    if not 0 < peak_epoch * at.epoch_steps < at.total:
        raise UserError(
            f"schedule one-cycle: peak_epoch = {peak_epoch:g} is not within the"
            f" {at.total / at.epoch_steps:g} epochs"
        )
    peak = peak_epoch * at.epoch_steps - 1
    if at.step <= peak:
        return _between(low, 1.0, at.step / peak if peak > 0 else 1.0, shape)
    end = low * 1e-4 if annihilation else low
    return _between(1.0, end, (at.step - peak) / max(1, at.total - 1 - peak), shape)


def _between(start: float, end: float, share: float, shape: str) -> float:
    share = 0.5 * (1 - math.cos(math.pi * share)) if shape == "cosine" else share
    return (1 - share) * start + share * end  # exact at both ends


SCHEDULES: Table[Callable[..., float]] = Table(
    "schedule",
    {
        "constant": _constant,
        "linear": _linear,
        "cosine": _cosine,
        "step": _steps,
        "one-cycle": _one_cycle,
    },
)


def lr_factor(schedule: Step, at: Clock, warmup: int = 0) -> float:
    """The share of the peak lr at a step: a linear rise over `warmup` steps, then the schedule.

    The rise reaches 1 at its last step, so that no step is lost at lr 0.
    """
    if at.step < warmup:
        return (at.step + 1) / warmup
    name, settings = schedule
    late = at._replace(step=at.step - warmup, total=at.total - warmup)
    return SCHEDULES[name](late, **settings)


def set_lr_(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's lr to `factor` times the one it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])
