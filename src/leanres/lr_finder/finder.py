"""The LR range test: train a copy of the network while the lr rises, and analyse its losses.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.lr_finder.analysis import LATE, LRRange, LRSweep, analyse, stop_step
from leanres.runs.run import prepare
from leanres.training.device import Device, detect
from leanres.training.loop import TrainState, steps
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup
from leanres.training.step_counts import StepCounts

IMAGES = 25_000  # images that a test trains on by default
READ_EVERY = 10  # steps between reads of the losses, each of which waits for the device


def find_lr(
    recipe: Recipe, data: Dataset | Split, device: Device | None = None, **sweep: Any
) -> LRRange:
    """Run the test on `data` from the recipe's first step; keywords are the fields of `LRSweep`.

    Of a Dataset it uses the images that the recipe would train on, without those that it holds out;
    a Split is used whole. The default `steps` are those that IMAGES take, 100 to 1,000. Without
    keywords, a second, linear test follows if the loss of the first one only falls to chance level.
    UserError if the losses give no answer; it says what to change.
    """
    given = LRSweep(**sweep) if sweep else None  # a mistake shows before any work
    device = device or detect("auto", recipe.precision, compiled=False)
    if isinstance(data, Split):
        data = Dataset("split", data, None, None)
        recipe = replace(recipe, val=0, stop_after=0, keep_best=False)
    with device.seeded(recipe.seed):
        run = prepare(recipe, data, device)
    if given is not None and "steps" not in sweep:
        given = replace(given, steps=default_steps(recipe, len(run.setup.train)))
    return range_test(run.state, run.setup, given)


def default_steps(recipe: Recipe, images: int) -> int:
    """Steps that train on IMAGES, or on a small split twice, but between 100 and 1,000.

    A hundred small batches are too few: with 32 images each, the loss of modified-resnet-4 did not
    fall at any lr; with 128, that of ResNet-20 only fell to chance level.
    """
    counts = StepCounts(recipe, images)
    return min(1000, max(100, math.ceil(min(IMAGES, 2 * images) / counts.batch_size)))


def range_test(state: TrainState, setup: Setup, sweep: LRSweep | None = None) -> LRRange:
    """Run the test from `state` on, in the current phase of the recipe.

    A copy is trained: `state` and the global generators are left unchanged, even if this raises.
    The default sweep is that of `find_lr` without keywords. UserError if the losses give no answer.
    """
    # Compiling takes longer than it saves in a hundred steps.
    setup = replace(setup, device=replace(setup.device, compiled=False))
    classes, images = len(setup.train.classes), len(setup.train)

    def test(sweep: LRSweep) -> LRRange:
        frozen = replace(setup, recipe=freeze_phase(setup.recipe, images, state.step, sweep.steps))
        with setup.device.seeded(setup.recipe.seed):
            return analyse(_losses(_copy(state), frozen, sweep), sweep)

    if sweep is not None:
        return test(sweep)
    sweep = LRSweep(steps=default_steps(setup.recipe, images))
    found, chance = test(sweep), math.log(classes)
    # A loss that falls from well above chance level, but not below it, only shows how an
    # overconfident initial classifier becomes uncertain. Its lrs are orders of magnitude below
    # those that train the network (as for a DavidNet without the factor on its logits).
    if found.smoothed[0] > 1.1 * chance and not _learns(found, chance):
        return _second_test(found, sweep, chance, test)
    return found


def _learns(found: LRRange, chance: float) -> bool:
    return min(found.smoothed) < 0.95 * chance


def _second_test(
    found: LRRange, sweep: LRSweep, chance: float, test: Callable[[LRSweep], LRRange]
) -> LRRange:
    """A linear test from the lr of the lowest loss on, which gives the network time to learn.

    If that does not help either, the first result, marked as doubtful.
    """
    low = LATE * found.suggestions["minimum"]
    came = f"the loss of an exponential test fell to {min(found.smoothed):.2f}, chance level"
    try:
        second = test(replace(sweep, lr_min=low / 2, lr_max=100 * low, mode="linear"))
    except UserError:
        second = found
    if _learns(second, chance):
        return replace(second, stopped=f"{came}; a linear test: {second.stopped}")
    return replace(found, stopped=f"{found.stopped}; {came}: give another range, or more steps")


def _copy(state: TrainState) -> TrainState:
    """A copy of networks and optimizers that refer to each other; without the weight average."""
    bare = replace(state, ema=None, teacher=None, history=[], losses=[], correct=[], function=None)
    return replace(copy.deepcopy(bare), teacher=state.teacher)


def freeze_phase(recipe: Recipe, images: int, step: int, extra: int) -> Recipe:
    """The recipe with image size and stem fixed as at `step`, for at least `extra` more steps."""
    counts = StepCounts(recipe, images)
    return replace(
        recipe,
        epochs=math.ceil((step + extra) / counts.steps_per_epoch),
        schedule=("constant", {}),  # the sweep sets the lr; a cycle may not fit these epochs
        progressive_resizing=((0.0, counts.scale(step)),),
        freeze_stem_at=float(step < counts.freeze_stem),
    )


def _losses(state: TrainState, setup: Setup, sweep: LRSweep) -> list[float]:
    """The loss of each step, to the sweep's end or up to READ_EVERY - 1 after its early stop."""
    lrs, first = sweep.lrs, state.step
    group = state.optimizers[0].param_groups[0]
    peak = float(group.get("peak_lr", group["lr"]))
    if not peak > 0:
        raise UserError(f"lr = {peak:g} of the first parameter group: give one above 0")
    losses: list[float] = []
    unread: list[Tensor] = []
    for result in steps(state, setup, lambda i: lrs[i - first] / peak):
        unread.append(result.loss)
        done = state.step - first == len(lrs)
        if done or len(unread) == READ_EVERY:
            losses += torch.stack(unread).tolist()
            unread = []
            if done or stop_step(losses, sweep) < len(losses):
                break
    return losses
