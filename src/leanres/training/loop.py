"""TrainState, steps(), train_epochs(): the loop, which knows neither files nor terminals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from leanres.augment.rng import generator
from leanres.data.split import Split
from leanres.errors import UserError
from leanres.metrics.inference import memory_format, predict_logits
from leanres.models.branch_layers import is_random
from leanres.models.config import ModelConfig
from leanres.models.preprocess import ImageClassifier
from leanres.models.zoo import fitted, resolve
from leanres.training.batch import Batch, batches, shrink, whitening_sample
from leanres.training.cuda_graph import Replay
from leanres.training.device import Device
from leanres.training.distill import teacher_logits
from leanres.training.distributed import Parts
from leanres.training.early_stopping import best_epoch, check_val, stopped_early
from leanres.training.ema import average_, ema_decay
from leanres.training.finetune import (
    Pretrained,
    freeze_layers_,
    freeze_statistics_,
    load_pretrained_,
    scale_lr_by_depth_,
)
from leanres.training.hard_examples import select_hardest_
from leanres.training.loss import backward
from leanres.training.optim import (
    classifier_parameters,
    optimizers_of,
    set_lr_,
    set_momentum_,
)
from leanres.training.parts import Mark, ignore, unchanged_if_lost
from leanres.training.recipe import Recipe
from leanres.training.sam import sam_perturbed_
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts

CHECK_EVERY = 50  # steps between checks that the loss is finite: each synchronises the device
MetricsRow = dict[str, Any]


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message says at which step."""


class StepResult(NamedTuple):
    """What a step measured, still on the device: mean loss (), correct predictions ().

    `gradient_norm` () of all gradients together is there at an epoch's last step; elsewhere it may
    be None.
    """

    loss: Tensor
    correct: Tensor
    gradient_norm: Tensor | None = None


@dataclass(frozen=True)
class StepFunction:
    """The compiled forward passes of a recipe on a device; independent of the recipe's seed."""

    recipe: Recipe
    device: Device
    update: Callable[[Batch, bool], StepResult]  # a batch, and whether to measure the gradient
    select: nn.Module | None  # the selector's forward pass
    captured: bool = False  # whether `update` replays a graph

    def fits(self, setup: Setup) -> bool:
        """Whether it was made for this device and recipe; the seed does not matter."""
        same = replace(self.recipe, seed=setup.recipe.seed)
        return (same, self.device) == (setup.recipe, setup.device)


@dataclass
class TrainState:
    """Everything that changes while training: with the setup it determines all further steps.

    The teacher and the weights to start from, which do not change, are kept here too.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    ema: nn.Module | None
    teacher: ImageClassifier | None = None
    pretrained: Pretrained | None = None  # what the weights were at the start
    selector: nn.Module | None = None  # its optimizers are the last of `optimizers`
    step: int = 0
    history: list[MetricsRow] = field(default_factory=list)  # one row per finished epoch
    losses: list[Tensor] = field(default_factory=list)  # of the running epoch, one per step
    correct: list[Tensor] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch, if kept
    function: StepFunction | None = None  # cached: compiling and capturing are expensive

    @property
    def averaged(self) -> nn.Module:
        """The network of this step to evaluate: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema

    @property
    def kept(self) -> nn.Module:
        """The network to measure and save: that of the best epoch where its weights are kept."""
        if not self.best:
            return self.averaged
        network = copy.deepcopy(self.averaged)
        network.load_state_dict(self.best)
        return network

    def is_finished(self, counts: StepCounts) -> bool:
        """Whether the training has ended: at its last step, or early, by its accuracy on val."""
        return self.step >= counts.total or stopped_early(self.history, counts.recipe.stop_after)

    @property
    def networks(self) -> list[nn.Module]:
        """What is trained: the model, and the selector where there is one."""
        return [self.model] if self.selector is None else [self.model, self.selector]


def network_config(shape: str | ModelConfig, train: Split) -> ModelConfig:
    """The network for these images: their channels, and one output per class."""
    return fitted(resolve(shape), len(train.classes), train.channels)


def start(
    setup: Setup, teacher: ImageClassifier | None = None, pretrained: Pretrained | None = None
) -> TrainState:
    """A fresh state: networks with initial weights, their optimizers, the weight average.

    `pretrained` weights, where there are any, take the place of the initial ones. UserError where
    they do not fit.
    """
    recipe = setup.recipe
    model = initial_network(recipe.model, setup, pretrained)
    freeze_layers_(model, recipe.freeze)
    optimizers = optimizers_of(model, recipe)
    if recipe.layer_lr_decay < 1:
        scale_lr_by_depth_(optimizers, model, recipe.layer_lr_decay)
    selector = None
    if recipe.selector:
        selector = initial_network(recipe.selector, setup)
        optimizers += optimizers_of(selector, recipe)
    setup.normalize.to(setup.device.name)
    ema = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
    return TrainState(model, optimizers, ema, teacher, pretrained, selector)


def initial_network(
    shape: str | ModelConfig, setup: Setup, pretrained: Pretrained | None = None
) -> nn.Module:
    """A network for the setup's data on its device, its weights drawn from the recipe's seed.

    One that has `init_from_data_` gets a sample of normalised images (N, C, H, W) to start from.
    `pretrained` weights are then copied over those that they fit.
    """
    recipe = setup.recipe
    with setup.device.seeded(recipe.seed):
        model = network_config(shape, setup.train).build()
    init: Callable[[Tensor], None] | None = getattr(model, "init_from_data_", None)
    if init is not None:
        normalize = copy.deepcopy(setup.normalize).cpu()
        init(normalize(whitening_sample(setup.train, recipe.seed)))
    if recipe.optimizer == "sgd":
        with torch.no_grad():
            for p in classifier_parameters(model):
                p.mul_(recipe.head_scale)
    if pretrained is not None:
        own = network_config(shape, setup.train)
        if own != fitted(pretrained.config, own.num_classes, own.in_channels):
            raise UserError(
                f"init = {recipe.init!r} has another network than the recipe: give --model"
                f" {recipe.init}, or Recipe(model=load_predictor({recipe.init!r}).config)"
            )
        load_pretrained_(model, pretrained, setup.train.classes)
    return setup.device.place(model)


def steps(
    state: TrainState,
    setup: Setup,
    lr_factor: Callable[[int], float] | None = None,
    mark: Mark | None = None,
) -> Iterator[StepResult]:
    """Run optimizer steps from `state.step` to the recipe's end, yielding after each.

    `lr_factor(step)` is the share of each group's peak lr; by default the recipe's schedule.
    `mark` is called with the name of each part of a step when it is done; steps are then not
    captured as graphs.

    Order, augmentation and dropout are drawn from (seed, epoch, step) and the part of the batch, so
    a resumed training takes the same steps, and so does one by several processes. No step waits for
    the device, except with a network that draws random numbers itself (dropout, stochastic depth,
    shake-shake). Where another process ends, LostProcessError, the state is that before the step.
    """
    recipe, counts, device = setup.recipe, setup.counts, setup.device
    lr_factor, done = lr_factor or counts.lr_factor, mark or ignore
    for model in state.networks:
        model.train()
    freeze_statistics_(state.model, recipe.freeze)
    function = _step_function(state, setup, mark)  # its networks keep the modes of these
    before, after = setup.normalizers
    draws = any(is_random(module) for model in state.networks for module in model.modules())
    for batch in batches(setup.train, counts, state.step, before, setup.world):
        images, targets = (x.to(device.name, non_blocking=True) for x in batch)
        done("data and augmentation")
        parts = counts.parts(state.step % counts.steps_per_epoch)
        inputs = _inputs(images, after, counts.scale(state.step))
        done("normalise and resize")
        if state.step >= counts.freeze_stem:
            for model in state.networks:
                freeze_stem_(model)
        set_lr_(state.optimizers, lr_factor(state.step))
        if (momentum := counts.momentum(state.step)) is not None:
            set_momentum_(state.optimizers, momentum)
        alone = setup.world.size == 1
        with nullcontext() if alone else unchanged_if_lost(state.networks):
            if function.select is not None:
                seeds = _part_seeds(state, setup, 4) if draws else ()
                kept = select_hardest_(
                    function.select, Batch(inputs, targets, None, parts, seeds), setup
                )
                images, inputs, targets = (
                    setup.world.chosen(x, parts, kept) for x in (images, inputs, targets)
                )
                parts = Parts(len(kept), recipe.accumulate)
                inputs = inputs.contiguous(memory_format=memory_format(device.name))
                done("selector")
            logits = teacher_logits(state.teacher, images, parts.size, setup)
            # Once an epoch is enough: the norm is read beside the losses, and costs a little.
            last = (state.step + 1) % counts.steps_per_epoch == 0
            by_part = draws and not function.captured  # a graph cannot be seeded within
            with nullcontext() if by_part or not draws else _seeded(state, setup):
                seeds = _part_seeds(state, setup, 1) if by_part else ()
                result = function.update(Batch(inputs, targets, logits, parts, seeds), last)
        if state.ema is not None:
            average_(state.ema, state.model, ema_decay(recipe.ema, state.step))
            done("average of the weights")
        state.step += 1
        yield result


def _inputs(images: Tensor, normalize: nn.Module, scale: float) -> Tensor:
    """What the network gets of a step's images, which may be none: a process may have no part."""
    inputs = shrink(normalize(images), scale) if len(images) else images.float()
    return inputs.contiguous(memory_format=memory_format(images.device))


def _part_seeds(state: TrainState, setup: Setup, purpose: int) -> tuple[int, ...]:
    """A seed for each part of this step."""
    epoch, position = divmod(state.step, setup.counts.steps_per_epoch)
    counters = (setup.recipe.seed, epoch, position + 1, purpose)
    return tuple(
        generator(*counters, part).initial_seed() for part in range(setup.recipe.accumulate)
    )


def _seeded(state: TrainState, setup: Setup) -> AbstractContextManager[object]:
    """The context of a captured step, which is seeded as a whole."""
    epoch, position = divmod(state.step, setup.counts.steps_per_epoch)
    counters = (setup.recipe.seed, epoch, position + 1, 1, setup.world.rank)
    return setup.device.seeded(generator(*counters).initial_seed())


def _step_function(state: TrainState, setup: Setup, mark: Mark | None) -> StepFunction:
    """The state's step function, made if it has none that fits; with `mark` always a new one."""
    if mark is not None:
        return _compile_step(state, setup, mark, capture=False)
    if state.function is None or not state.function.fits(setup):
        state.function = _compile_step(state, setup, ignore, setup.device.captures_steps)
    return state.function


def _compile_step(state: TrainState, setup: Setup, mark: Mark, capture: bool) -> StepFunction:
    recipe, device = setup.recipe, setup.device
    forward = device.training_forward(state.model)

    def update(batch: Batch, measured: bool = True) -> StepResult:
        loss, correct = backward(forward, batch, setup, mark)
        if recipe.sam_rho:
            with sam_perturbed_(state.model, recipe.sam_rho, recipe.sam_adaptive):
                backward(forward, batch, setup, mark)
        norm = _gradient_norm(state.model) if measured else None
        with device.low_precision_matmul():
            for optimizer in state.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        return StepResult(loss, correct, norm)

    if state.selector is not None:  # its gradients come from outside of the update: no capture
        return StepFunction(recipe, device, update, device.training_forward(state.selector))
    # A graph holds the momentum that it was captured with.
    if not (capture and device.compiled) or setup.counts.momentum(0) is not None:
        return StepFunction(recipe, device, update, None)
    replay = Replay(update, state.model, state.optimizers)
    return StepFunction(recipe, device, lambda batch, _: replay(batch), None, captured=True)


def restart_(state: TrainState, setup: Setup) -> None:
    """Reset a state in place to what `start` gives; the recipe may differ in its seed alone.

    The compiled and captured step is thus reused.
    """
    fresh = start(setup, state.teacher, state.pretrained)
    for name in ("model", "ema", "selector"):
        own, new = getattr(state, name), getattr(fresh, name)
        if own is None:
            continue
        own.load_state_dict(new.state_dict())
        for p, q in zip(own.parameters(), new.parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
            p.grad = None
    for optimizer in state.optimizers:
        for entries in optimizer.state.values():
            for value in entries.values():  # buffers and counters, which all begin at 0
                if isinstance(value, Tensor):
                    value.zero_()
    state.step, state.history, state.losses, state.correct, state.best = 0, [], [], [], {}


def freeze_stem_(model: nn.Module) -> None:
    """Stop training `model.stem`: it gets no gradients, which also saves its backward pass."""
    stem = getattr(model, "stem", None)
    if isinstance(stem, nn.Module):
        for p in stem.parameters():
            p.requires_grad_(False)
            p.grad = None


def _gradient_norm(model: nn.Module) -> Tensor:
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def train_epochs(
    state: TrainState,
    setup: Setup,
    val: Split | None = None,
    watch: Callable[[TrainState], bool] = lambda state: True,
) -> Iterator[MetricsRow]:
    """Train from `state` to the recipe's end, yielding one row of metrics per epoch.

    `stop_after` may end it before. `watch(state)` is called after each step; False ends the
    generator there, between two steps, with everything in `state`. Raises NonFiniteLossError, and
    UserError where the recipe chooses an epoch on val and there is none.
    """
    check_val(setup.recipe, val is not None)
    if state.is_finished(setup.counts):
        return
    per_epoch = setup.counts.steps_per_epoch
    for result in steps(state, setup):
        state.losses.append(result.loss)
        state.correct.append(result.correct)
        ended = state.step % per_epoch == 0
        if ended or state.step % CHECK_EVERY == 0:
            check_finite(state)
        if ended:
            state.history.append(_row(state, result, setup, val))
            if setup.recipe.keep_best and best_epoch(state.history) == len(state.history):
                weights = state.averaged.state_dict()
                state.best = {name: tensor.clone() for name, tensor in weights.items()}
            yield state.history[-1]
        if not watch(state) or (ended and state.is_finished(setup.counts)):
            return


def check_finite(state: TrainState) -> None:
    """Raise NonFiniteLossError naming the first bad step of the running epoch, or bad weights."""
    if not state.losses:
        return
    bad = (~torch.stack(state.losses).isfinite()).nonzero()
    if len(bad):
        step = state.step - len(state.losses) + int(bad[0]) + 1
        raise NonFiniteLossError(f"the loss is {float(state.losses[int(bad[0])])} at step {step}")
    # No loss was computed since the last update, and these weights are what is saved next.
    floats = [x for x in state.model.state_dict().values() if x.is_floating_point()]
    if not get_total_norm(floats, math.inf).isfinite():  # running statistics may overflow first
        raise NonFiniteLossError(f"the weights are not finite after step {state.step}")


def _row(state: TrainState, last: StepResult, setup: Setup, val: Split | None) -> MetricsRow:
    assert last.gradient_norm is not None, "an epoch's last step has a gradient norm"
    row: MetricsRow = {
        "epoch": state.step // setup.counts.steps_per_epoch,
        "step": state.step,
        "lr": state.optimizers[0].param_groups[0]["lr"],
        "train_loss": float(torch.stack(state.losses).mean()),
        "train_accuracy": float(torch.stack(state.correct).sum()) / setup.counts.selected_per_epoch,
        "gradient_norm": float(last.gradient_norm),
    }
    state.losses, state.correct = [], []
    if val is not None:
        network, autocast = setup.device.accelerate(state.averaged), setup.device.autocast
        logits = setup.world.predict(
            lambda images: predict_logits(
                network, images, normalize=setup.normalize, autocast=autocast()
            ),
            val.images,
            len(val.classes),
        )
        row["val_loss"] = float(F.cross_entropy(logits, val.labels))
        row["val_accuracy"] = float((logits.argmax(1) == val.labels).float().mean())
    for name, value in row.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{name} is {value} after step {state.step}")
    return row
