"""The LR range test: train a copy while the lr rises, read off where the loss falls and where not.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.lr_curve import LRRange, Ramp, end, judge
from leanres.training.engine import Engine, Normalize, detect
from leanres.training.loop import TrainState, steps
from leanres.training.recipe import Plan, Recipe
from leanres.training.run import prepare

CHECK_EVERY = 10  # steps between looks at the loss: each waits for the device


def find_lr(
    recipe: Recipe, data: Dataset | Split, engine: Engine | None = None, **ramp: Any
) -> LRRange:
    """Test the recipe from its first step on `data`; keywords are the fields of `Ramp`.

    Of a Dataset the images that the recipe would train on are used, without those it holds out;
    a Split is used whole. UserError where the curve gives no answer: it says what to change.
    """
    rises = Ramp(**ramp)
    engine = engine or detect("auto", recipe.precision, compiled=False)
    if isinstance(data, Split):
        data, recipe = Dataset("split", data, None, None), replace(recipe, val=0)
    with _own_randomness(engine, recipe.seed):
        run = prepare(Path(), recipe, data, engine)
    return range_test(run.state, run.train, recipe, run.normalize, engine, rises)


def range_test(
    state: TrainState,
    train: Split,
    recipe: Recipe,
    normalize: Normalize,
    engine: Engine,
    ramp: Ramp | None = None,
) -> LRRange:
    """Test from `state` on, in the phase of the recipe that it is in; arguments as of `steps`.

    A copy is trained: however this ends, `state` and the global generators are as they were.
    UserError where the curve gives no answer.
    """
    ramp = ramp or Ramp()
    held = hold(recipe, len(train), state.step, ramp.steps)
    # A hundred steps do not repay a compilation.
    engine = replace(engine, compiled=False)
    with _own_randomness(engine, recipe.seed):
        losses = _train(_copy(state), train, held, normalize, engine, ramp)
    return judge(losses, ramp)


@contextmanager
def _own_randomness(engine: Engine, seed: int) -> Iterator[None]:
    """Seed the global generators, which a network may draw from, and put them back after."""
    cuda = torch.device(engine.device).type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
        torch.manual_seed(seed)
        yield


def _copy(state: TrainState) -> TrainState:
    """Network and optimizers, tied to each other as they were; no average: none is needed."""
    bare = replace(state, ema=None, teacher=None, history=[], losses=[], correct=[])
    return replace(copy.deepcopy(bare), teacher=state.teacher)


def hold(recipe: Recipe, images: int, step: int, extra: int) -> Recipe:
    """The recipe, its image size and stem kept as they are at `step`, for `extra` steps or more."""
    plan = Plan(recipe, images)
    return replace(
        recipe,
        epochs=math.ceil((step + extra) / plan.steps_per_epoch),
        schedule=("constant", {}),  # the ramp drives the lr; a cycle may not fit these epochs
        resolution=((0.0, plan.scale(step)),),
        freeze_stem_at=float(step < plan.freeze_stem),
    )


def _train(
    state: TrainState,
    train: Split,
    recipe: Recipe,
    normalize: Normalize,
    engine: Engine,
    ramp: Ramp,
) -> list[float]:
    """The loss of each step, to the ramp's end or up to CHECK_EVERY - 1 past its early stop."""
    lrs, first, peak = ramp.lrs, state.step, _main_lr(state)
    losses: list[float] = []
    unread: list[Tensor] = []
    for result in steps(state, train, recipe, normalize, engine, lambda i: lrs[i - first] / peak):
        unread.append(result.loss)
        done = state.step - first == len(lrs)
        if done or len(unread) == CHECK_EVERY:
            losses += torch.stack(unread).tolist()
            unread = []
            if done or end(losses, ramp) < len(losses):
                break
    return losses


def _main_lr(state: TrainState) -> float:
    group = state.optimizers[0].param_groups[0]
    peak = float(group.get("peak_lr", group["lr"]))
    if not peak > 0:
        raise UserError(f"lr = {peak:g} of the first parameter group: give it one above 0 to scale")
    return peak
