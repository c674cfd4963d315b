"""The LR range test: train a copy while the lr rises, read off where the loss falls and where not.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.lr_finder.analysis import LATE, LRRange, LRSweep, analyse, end
from leanres.runs.run import prepare
from leanres.training.device import Device, detect
from leanres.training.loop import TrainState, steps
from leanres.training.recipe import Recipe, StepCounts
from leanres.training.setup import Setup

IMAGES = 25_000  # that a test sees by default
CHECK_EVERY = 10  # steps between looks at the loss: each waits for the device


def find_lr(
    recipe: Recipe, data: Dataset | Split, device: Device | None = None, **sweep: Any
) -> LRRange:
    """Test the recipe from its first step on `data`; keywords are the fields of `LRSweep`.

    Of a Dataset the images that the recipe would train on are used, without those it holds out;
    a Split is used whole. `steps` are by default as many as see IMAGES, 100 to 1,000. Without
    keywords a second, linear test follows where the first brings the loss down to guessing only.
    UserError where the curve gives no answer: it says what to change.
    """
    rises = LRSweep(**sweep) if sweep else None  # a mistake shows before any work
    device = device or detect("auto", recipe.precision, compiled=False)
    if isinstance(data, Split):
        data, recipe = Dataset("split", data, None, None), replace(recipe, val=0)
    with _own_randomness(device, recipe.seed):
        run = prepare(recipe, data, device)
    if rises is not None and "steps" not in sweep:
        rises = replace(rises, steps=enough(recipe, len(run.setup.train)))
    return range_test(run.state, run.setup, rises)


def enough(recipe: Recipe, images: int) -> int:
    """Steps that see IMAGES, or a small split twice, but 100 to 1,000 of them.

    A hundred small batches are too few to learn from: at 32 images each the loss of
    modified-resnet-4 did not fall at any lr, at 128 ResNet-20's fell to that of guessing.
    """
    counts = StepCounts(recipe, images)
    return min(1000, max(100, math.ceil(min(IMAGES, 2 * images) / counts.batch_size)))


def range_test(state: TrainState, setup: Setup, sweep: LRSweep | None = None) -> LRRange:
    """Test from `state` on, in the phase of the recipe that it is in.

    A copy is trained: however this ends, `state` and the global generators are as they were.
    Without a sweep: as `find_lr` without keywords. UserError where the curve gives no answer.
    """
    # A hundred steps do not repay a compilation.
    setup = replace(setup, device=replace(setup.device, compiled=False))
    classes, images = len(setup.train.classes), len(setup.train)

    def test(sweep: LRSweep) -> LRRange:
        frozen = replace(setup, recipe=freeze_phase(setup.recipe, images, state.step, sweep.steps))
        with _own_randomness(setup.device, setup.recipe.seed):
            return analyse(_train(_copy(state), frozen, sweep), sweep)

    if sweep is not None:
        return test(sweep)
    sweep = LRSweep(steps=enough(setup.recipe, images))
    found, guessing = test(sweep), math.log(classes)
    return _second_look(found, sweep, guessing, test) if only_settled(found, guessing) else found


def only_settled(found: LRRange, guessing: float) -> bool:
    """Whether a curve says how a classifier that starts too sure calms down, and no more.

    Its loss starts well above that of guessing and does not get below it: the rates on it are
    orders of magnitude below those that train the network (a DavidNet without its factor on the
    logits).
    """
    return found.smoothed[0] > 1.1 * guessing and not _learns(found, guessing)


def _learns(found: LRRange, guessing: float) -> bool:
    return min(found.smoothed) < 0.95 * guessing


def _second_look(
    found: LRRange, sweep: LRSweep, guessing: float, test: Callable[[LRSweep], LRRange]
) -> LRRange:
    """A linear test from where the loss was lowest on, which leaves the network time to learn.

    If that does not learn either, what was found first, said to be doubtful.
    """
    low = LATE * found.suggestions["minimum"]
    came = f"an exponential test came down to {min(found.smoothed):.2f}, which is guessing"
    try:
        second = test(replace(sweep, lr_min=low / 2, lr_max=100 * low, mode="linear"))
    except UserError:
        second = found
    if _learns(second, guessing):
        return replace(second, stopped=f"{came}; a linear one {second.stopped}")
    doubt = f"{came}: give another range, or more steps"
    return replace(found, stopped=f"{found.stopped}; {doubt}")


@contextmanager
def _own_randomness(device: Device, seed: int) -> Iterator[None]:
    """Seed the global generators, which a network may draw from, and put them back after."""
    with device.fork_rng():
        torch.manual_seed(seed)
        yield


def _copy(state: TrainState) -> TrainState:
    """Network and optimizers, tied to each other as they were; no average: none is needed."""
    bare = replace(state, ema=None, teacher=None, history=[], losses=[], correct=[], function=None)
    return replace(copy.deepcopy(bare), teacher=state.teacher)


def freeze_phase(recipe: Recipe, images: int, step: int, extra: int) -> Recipe:
    """The recipe, its image size and stem kept as they are at `step`, for `extra` steps or more."""
    counts = StepCounts(recipe, images)
    return replace(
        recipe,
        epochs=math.ceil((step + extra) / counts.steps_per_epoch),
        schedule=("constant", {}),  # the sweep drives the lr; a cycle may not fit these epochs
        progressive_resizing=((0.0, counts.scale(step)),),
        freeze_stem_at=float(step < counts.freeze_stem),
    )


def _train(state: TrainState, setup: Setup, sweep: LRSweep) -> list[float]:
    """The loss of each step, to the sweep's end or up to CHECK_EVERY - 1 past its early stop."""
    lrs, first, peak = sweep.lrs, state.step, _main_lr(state)
    losses: list[float] = []
    unread: list[Tensor] = []
    for result in steps(state, setup, lambda i: lrs[i - first] / peak):
        unread.append(result.loss)
        done = state.step - first == len(lrs)
        if done or len(unread) == CHECK_EVERY:
            losses += torch.stack(unread).tolist()
            unread = []
            if done or end(losses, sweep) < len(losses):
                break
    return losses


def _main_lr(state: TrainState) -> float:
    group = state.optimizers[0].param_groups[0]
    peak = float(group.get("peak_lr", group["lr"]))
    if not peak > 0:
        raise UserError(f"lr = {peak:g} of the first parameter group: give it one above 0 to scale")
    return peak
