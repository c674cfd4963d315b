"""What a training step costs, part by part, beside what the machine can do at best."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from leanres.data.split import Dataset
from leanres.models.cost import summarize
from leanres.runs import run as runs
from leanres.runs.layout import commit
from leanres.training.batch import Batch, ahead, batches, shrink
from leanres.training.device import Engine, hardware, matrix_rate, memory_rate
from leanres.training.distill import teach
from leanres.training.hard_examples import hardest
from leanres.training.loop import average_, backward, ema_decay, steps
from leanres.training.recipe import Recipe
from leanres.training.sam import sam_perturbed_

WARM_UP = 3  # steps before the clock runs: the allocator fills, cuDNN chooses, kernels compile

KINDS = {  # an operator's name contains -> what it does
    "_Fused": "pooling, batch norm, activation",
    "_Join": "pooling, batch norm, activation",
    "_Activate": "activation",
    "_Convolve": "convolution",
    "conv": "convolution",
    "max_pool": "pooling",
    "avg_pool": "pooling",
    "batch_norm": "batch norm",
    "threshold": "activation",
    "clamp_min": "activation",
    "elu": "activation",
    "upsample": "augmentation and resize",
    "grid_sampler": "augmentation and resize",
    "index": "augmentation and resize",
    "reflection_pad": "augmentation and resize",
    "aten::flip": "augmentation and resize",
    "aten::where": "augmentation and resize",
    "mm": "matrix products (optimizer, classifier)",
    "_foreach": "optimizer",
}


def measure_step(
    recipe: Recipe, dataset: Dataset, engine: Engine, count: int = 10
) -> dict[str, Any]:
    """Seconds of a step and of its parts, and the shares of the machine's rates it reaches.

    Steps at the start of the recipe are measured, so give one whose phase of interest comes
    first. `parts` are medians in seconds: data (gathering the batch and augmenting it), resize,
    forward, backward, optimizer; each is timed with the device idle before and after, so on a GPU
    they add up to more than `seconds_per_step`. `operators` are seconds of an uncompiled step.
    """
    run = runs.prepare(Path(), recipe, dataset, engine)
    plan, scale = run.plan, run.plan.scale(0)
    side = round(scale * run.train.images.shape[-1])
    seconds = step_seconds(run, count)
    peak = peak_memory(engine)  # before the rates: they take a GiB themselves
    parts = part_seconds(run, count)
    flops, traffic = cost_of_step(run)
    images = shrink(run.normalize(run.train.images[: plan.images_per_step]), scale)
    alone = convolution_rate(run.state.model.train(), images, engine)
    matrix = matrix_rate(engine)
    memory = memory_rate(engine)
    return {
        "hardware": hardware(engine),
        "commit": commit(),
        "model": recipe.model if isinstance(recipe.model, str) else "own network",
        "macs_per_image": summarize(run.config, (3, side, side)).macs,
        "side": side,
        "batch_size": plan.images_per_step,
        "seconds_per_step": seconds,
        "images_per_s": plan.images_per_step / seconds,
        "parts": parts,
        "operators": operator_seconds(run),
        "tflop_per_step": flops / 1e12,
        "tflops": flops / seconds / 1e12,
        "tflops_of_convolutions_alone": alone / 1e12,
        "matrix_tflops": matrix,
        "share_of_matrix_rate": flops / seconds / 1e12 / matrix,
        "gb_per_step": traffic / 1e9,
        "memory_gb_per_s": memory / 1e9,
        "share_of_memory_rate": traffic / seconds / memory,
        "peak_memory_mib": peak / 2**20,
    }


def step_seconds(run: runs.Run, count: int) -> float:
    """Wall seconds of one step of the loop that trains, over `count` of them in a row."""
    loop = endless(run)
    for _ in range(WARM_UP):
        next(loop)
    run.engine.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        next(loop)
    run.engine.synchronize()
    return (time.perf_counter() - begun) / count


def endless(run: runs.Run) -> Iterator[object]:
    """The loop's steps, begun anew whenever the recipe ends: a small data set has few."""
    while True:
        run.state.step = 0
        yield from steps(run.state, run.train, run.recipe, run.normalize, run.engine)


def uncompiled(run: runs.Run) -> runs.Run:
    """The run with its operators one by one, as counters and the profiler need them."""
    return replace(run, engine=replace(run.engine, compiled=False))


def part_seconds(run: runs.Run, count: int) -> dict[str, float]:
    """Median seconds of each part of `count` steps, run by the loop's own functions.

    Augmentation of several batches at once is shared out among their steps.
    """
    recipe, engine, plan = run.recipe, run.engine, run.plan
    forward = engine.forward(run.state.model)
    pick = None if run.state.selector is None else engine.forward(run.state.selector).train()
    run.state.model.train()
    laps: list[dict[str, float]] = []
    for lap in range(count + 1):
        clock = Clock(engine)
        prepared = list(islice(batches(run.train, plan), ahead(run.train, plan)))
        clock("data and augmentation")
        clock.parts["data and augmentation"] /= len(prepared)
        images, targets = prepared[0]
        inputs = shrink(run.normalize(images), plan.scale(0))
        clock("normalise and resize")
        if pick is not None:
            kept = hardest(pick, Batch(inputs, targets), plan, engine)
            images, inputs, targets = images[kept], inputs[kept], targets[kept]
            clock("selector")
        batch = Batch(inputs, targets, teach(run.state.teacher, images, plan, engine))
        if run.state.teacher is not None:
            clock("teacher")
        for part in batch.parts(recipe.accumulate):
            with engine.autocast():
                forward(part.inputs)
        clock("forward")
        backward(forward, batch, recipe, engine)
        clock("forward and backward")
        if recipe.sam_rho:
            with sam_perturbed_(run.state.model, recipe.sam_rho, recipe.sam_adaptive):
                backward(forward, batch, recipe, engine)
            clock("second forward and backward")
        with engine.low_precision_matmul():
            for optimizer in run.state.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        clock("optimizer")
        if run.state.ema is not None:
            average_(run.state.ema, run.state.model, ema_decay(recipe.ema, lap))
            clock("average of the weights")
        laps.append(clock.parts)
    parts = {name: statistics.median(lap[name] for lap in laps[1:]) for name in laps[0]}
    parts["backward"] = max(0.0, parts.pop("forward and backward") - parts["forward"])
    return parts


class Clock:
    """Seconds between calls, the device idle at each."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.parts = engine, dict[str, float]()
        engine.synchronize()
        self.since = time.perf_counter()

    def __call__(self, name: str) -> None:
        self.engine.synchronize()
        now = time.perf_counter()
        self.parts[name], self.since = now - self.since, now


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every operator's tensors, each read or written once; views move nothing.

    That is what an eager step moves where no cache helps.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            self.bytes += sum(x.nbytes for x in tensors)
        return out


def cost_of_step(run: runs.Run) -> tuple[int, int]:
    """(FLOP of products and convolutions, bytes moved) of the next step, run uncompiled."""
    # In float32 nothing is laid side by side, whose gaps would count as work.
    plain = replace(run, engine=replace(run.engine, compiled=False, precision="float32"))
    with FlopCounterMode(display=False) as flops:
        next(endless(plain))
    loop = endless(uncompiled(run))
    next(loop)
    with Traffic() as traffic:
        next(loop)
    return flops.get_total_flops(), traffic.bytes


def convolution_rate(model: nn.Module, images: Tensor, engine: Engine) -> float:
    """FLOP/s of the model's convolutions alone, forward and backward, each on its own: best of 3.

    images: (N, 3, H, W) float, a batch as the model trains on it.
    """
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [
        m.register_forward_pre_hook(lambda m, inputs: calls.append((m, inputs[0])))
        for m in convolutions
    ]
    with engine.autocast():
        model(images)
    for hook in hooks:
        hook.remove()
    seconds, flops = 0.0, 0
    for conv, seen in calls:
        x = seen.detach().requires_grad_(seen.requires_grad)
        with FlopCounterMode(display=False) as counter:
            _both_ways(conv, x, engine)
        flops += counter.get_total_flops()
        seconds += min(_timed(conv, x, engine) for _ in range(3))
    return flops / seconds


def _timed(conv: nn.Conv2d, x: Tensor, engine: Engine) -> float:
    forward = replace(engine, compiled=False).forward(conv)  # the kernels of a training step
    clock = Clock(engine)
    _both_ways(forward, x, engine)
    clock("both")
    return clock.parts["both"]


def _both_ways(conv: nn.Module, x: Tensor, engine: Engine) -> None:
    with engine.autocast():
        y = conv(x)
    if y.requires_grad:
        y.backward(torch.ones_like(y))
    for p in (*conv.parameters(), x):
        p.grad = None  # else the next backward would add to it


def operator_seconds(run: runs.Run, count: int = 3) -> dict[str, float]:
    """Seconds that each kind of operator takes of an uncompiled step, mean of `count`."""
    loop = endless(uncompiled(run))
    next(loop)
    cuda = torch.device(run.engine.device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as recorded:
        for _ in range(count):
            next(loop)
        run.engine.synchronize()
    clock = "self_device_time_total" if cuda else "self_cpu_time_total"
    microseconds: Counter[str] = Counter()
    for event in recorded.key_averages():
        if event.key.startswith(("aten::", "_")) or "mkldnn" in event.key:  # "_": our own
            microseconds[kind_of(event.key)] += getattr(event, clock)
    return {kind: spent / 1e6 / count for kind, spent in microseconds.items()}


def kind_of(operator: str) -> str:
    """What an operator of the profiler is for; convolutions apart by direction."""
    kind = next((kind for part, kind in KINDS.items() if part in operator), "rest")
    if kind == "convolution":
        return f"{kind}, {'backward' if 'backward' in operator.lower() else 'forward'}"
    return kind


def peak_memory(engine: Engine) -> int:
    """Bytes: of the device's tensors at their most, or of the process where that is the CPU."""
    if torch.device(engine.device).type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
