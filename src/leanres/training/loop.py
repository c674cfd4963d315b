"""TrainState, steps(), train(): the loop, which knows neither files nor terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from leanres.data.augment import Draw, augment, generator
from leanres.data.mix import MIXES
from leanres.data.split import Split
from leanres.evaluation.inference import predict_logits
from leanres.models import ModelConfig
from leanres.models.speednet import SpeedNet
from leanres.models.zoo import resolve
from leanres.training.engine import Engine, Normalize
from leanres.training.optim import OPTIMIZERS, set_lr_
from leanres.training.recipe import Plan, Recipe

CHECK_EVERY = 50  # steps between looks at whether the loss is finite: each waits for the device
Row = dict[str, Any]


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message says at which step."""


class StepResult(NamedTuple):
    """What a step found, still on the device: mean loss (), correct predictions ().

    `gradient_norm` () of all gradients together is there at an epoch's last step only.
    """

    loss: Tensor
    correct: Tensor
    gradient_norm: Tensor | None = None


@dataclass
class TrainState:
    """All that changes while training; with the recipe and the data it decides what follows."""

    model: nn.Module
    optimizers: list[Optimizer]
    ema: AveragedModel | None
    step: int = 0
    history: list[Row] = field(default_factory=list)  # one row per finished epoch
    losses: list[Tensor] = field(default_factory=list)  # of the running epoch, one per step
    correct: list[Tensor] = field(default_factory=list)

    @property
    def averaged(self) -> nn.Module:
        """The network to evaluate: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module


def network_config(recipe: Recipe, classes: tuple[str, ...]) -> ModelConfig:
    """The recipe's network with one output per class."""
    return replace(resolve(recipe.model), num_classes=len(classes))


def start(recipe: Recipe, train: Split, normalize: Normalize, engine: Engine) -> TrainState:
    """A fresh state: the network (its stem whitened, if it has such), optimizers, average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = network_config(recipe, train.classes).build()
    if isinstance(model, SpeedNet):
        model.whiten_(normalize.cpu()(whitening_sample(train, recipe.seed)))
    model = engine.place(model)
    normalize.to(engine.device)
    ema = None
    if recipe.ema:
        average = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return TrainState(model, OPTIMIZERS[recipe.optimizer](model, recipe), ema)


def whitening_sample(train: Split, seed: int) -> Tensor:
    """5,000 images drawn at random, fewer where they are large: some 5 million pixels."""
    pixels = train.images[0, 0].numel()
    count = max(1, min(5000, len(train), 5000 * 32 * 32 // pixels))
    chosen = torch.randperm(len(train), generator=generator(seed))[:count]
    return train.images[chosen.to(train.images.device)].cpu()


def steps(
    state: TrainState,
    train: Split,
    recipe: Recipe,
    normalize: Normalize,
    engine: Engine,
    factor: Callable[[int], float] | None = None,
) -> Iterator[StepResult]:
    """Run optimizer steps from `state.step` to the plan's end, yielding after each.

    `factor(step)` is the share of each group's peak lr; None: as the recipe's schedule has it.

    `train` lies on the engine's device. Order, augmentation and dropout are drawn from (seed,
    epoch, step), so where one starts does not matter. No step waits for the device, but those of
    a recipe with an average (PyTorch's AveragedModel reads its counter) or with dropout.
    """
    plan = Plan(recipe, len(train))
    if factor is None:
        factor = plan.lr_factor
    forward = engine.forward(state.model)
    drops = any(isinstance(m, nn.Dropout) and m.p for m in state.model.modules())
    state.model.train()
    order = torch.empty(0)
    while state.step < plan.total:
        epoch, position = divmod(state.step, plan.steps_per_epoch)
        if position == 0 or not len(order):
            order = epoch_order(train, recipe.seed, epoch)
        indices = order[position * plan.batch_size : (position + 1) * plan.batch_size]
        images, targets = training_batch(train, indices, recipe, epoch, position)
        inputs = shrink(normalize(images), plan.scale(state.step))
        if state.step >= plan.freeze_stem:
            freeze_stem_(state.model)
        set_lr_(state.optimizers, factor(state.step))
        last = position == plan.steps_per_epoch - 1
        with _own_dropout(drops, recipe.seed, epoch, position, inputs.device):
            result = _update(state, forward, inputs, targets, recipe, engine, last)
        state.step += 1
        yield result


@contextmanager
def _own_dropout(
    drops: bool, seed: int, epoch: int, step: int, device: torch.device
) -> Iterator[None]:
    """Seed the global generator, which dropout draws from, for one step; then put it back."""
    if not drops:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(seed, epoch, step + 1, 1).initial_seed())
        yield


def epoch_order(train: Split, seed: int, epoch: int) -> Tensor:
    """The positions of the images in the order in which an epoch takes them, (N,) int64."""
    order = torch.randperm(len(train), generator=generator(seed, epoch))
    return order.to(train.images.device)


def training_batch(
    train: Split, indices: Tensor, recipe: Recipe, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """What step `step` of an epoch trains on: images (N, C, H, W) and their targets.

    Images are augmented, and mixed where the recipe says so: targets are then probabilities
    (N, K), and else the labels (N,).
    """
    images, targets = train.images[indices], train.labels[indices]
    draw = Draw(
        generator(recipe.seed, epoch, step + 1, device=images.device), indices, epoch, recipe.seed
    )
    images = augment(images, recipe.augment, draw)
    if recipe.mix:
        # Which mix it is decides what the device computes, so it is drawn where it can be read.
        rng = generator(recipe.seed, epoch, step + 1, 2)
        name, settings = recipe.mix[int(torch.randint(len(recipe.mix), (), generator=rng))]
        shares = F.one_hot(targets, len(train.classes)).float()
        images, targets = MIXES[name](images, shares, draw, **settings)
    return images, targets


def shrink(images: Tensor, scale: float) -> Tensor:
    """(N, C, H, W) float -> (N, C, scale H, scale W), antialiased, channels last."""
    if scale == 1:
        return images
    side = [round(scale * s) for s in images.shape[2:]]
    small = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


def freeze_stem_(model: nn.Module) -> None:
    """Train `model.stem` no further: no gradient flows to it, which also saves its backward."""
    stem = getattr(model, "stem", None)
    if isinstance(stem, nn.Module):
        for p in stem.parameters():
            p.requires_grad_(False)
            p.grad = None


def _update(
    state: TrainState,
    forward: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    engine: Engine,
    last: bool,
) -> StepResult:
    parts = zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True)
    results = [forward_backward(forward, *part, len(targets), recipe, engine) for part in parts]
    # Once an epoch: it is read beside the losses, and a norm a step would cost more than it tells.
    norm = _gradient_norm(state.model) if last else None
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    loss, correct = (torch.stack(column).sum(0) for column in zip(*results, strict=True))
    return StepResult(loss, correct, norm)


def forward_backward(
    forward: nn.Module, inputs: Tensor, targets: Tensor, batch: int, recipe: Recipe, engine: Engine
) -> tuple[Tensor, Tensor]:
    """Add a part's gradients; its share of the batch's mean loss, and its correct predictions.

    Of a mixed image the class with the largest share counts as the correct one.
    """
    with engine.autocast():
        logits = forward(inputs)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
    loss = loss * (len(targets) / batch)
    loss.backward()  # type: ignore[no-untyped-call]
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def _gradient_norm(model: nn.Module) -> Tensor:
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def train(
    state: TrainState,
    data: Split,
    recipe: Recipe,
    normalize: Normalize,
    engine: Engine,
    val: Split | None = None,
    watch: Callable[[TrainState], bool] = lambda state: True,
) -> Iterator[Row]:
    """Train from `state` to the recipe's end, yielding one row of metrics per epoch.

    `watch(state)` is called after each step; False ends the generator there, between two steps,
    with everything in `state`. Raises NonFiniteLossError.
    """
    plan = Plan(recipe, len(data))
    for result in steps(state, data, recipe, normalize, engine):
        state.losses.append(result.loss)
        state.correct.append(result.correct)
        ended = state.step % plan.steps_per_epoch == 0
        if ended or state.step % CHECK_EVERY == 0:
            check_finite(state)
        if ended:
            state.history.append(_row(state, result, plan, normalize, engine, val))
            yield state.history[-1]
        if not watch(state):
            return


def check_finite(state: TrainState) -> None:
    """Raise NonFiniteLossError naming the first bad step of the running epoch, or bad weights."""
    if not state.losses:
        return
    bad = (~torch.stack(state.losses).isfinite()).nonzero()
    if len(bad):
        step = state.step - len(state.losses) + int(bad[0]) + 1
        raise NonFiniteLossError(f"the loss is {float(state.losses[int(bad[0])])} at step {step}")
    # The last update came after the last loss: what is saved next are these weights.
    if not get_total_norm(state.model.parameters()).isfinite():
        raise NonFiniteLossError(f"the weights are not finite after step {state.step}")


def _row(
    state: TrainState,
    last: StepResult,
    plan: Plan,
    normalize: Normalize,
    engine: Engine,
    val: Split | None,
) -> Row:
    assert last.gradient_norm is not None, "an epoch's last step has a gradient norm"
    seen = len(state.losses) * plan.batch_size
    row: Row = {
        "epoch": state.step // plan.steps_per_epoch,
        "step": state.step,
        "lr": state.optimizers[0].param_groups[0]["lr"],
        "train_loss": float(torch.stack(state.losses).mean()),
        "train_accuracy": float(torch.stack(state.correct).sum()) / seen,
        "gradient_norm": float(last.gradient_norm),
    }
    state.losses, state.correct = [], []
    if val is not None:
        logits = predict_logits(
            state.averaged, val.images, normalize=normalize, autocast=engine.autocast()
        )
        row["val_loss"] = float(F.cross_entropy(logits, val.labels))
        row["val_accuracy"] = float((logits.argmax(1) == val.labels).float().mean())
        state.model.train()
    return row
