"""The time of a training step, in parts, beside the machine's peak rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from leanres.data.split import Dataset
from leanres.models.cost import summarize
from leanres.models.zoo import network_name
from leanres.runs import run as runs
from leanres.runs.layout import commit
from leanres.training.batch import shrink, steps_augmented_together
from leanres.training.device import Device, hardware
from leanres.training.loop import steps
from leanres.training.parts import Mark
from leanres.training.recipe import Recipe
from leanres.training.timing import Stopwatch, least_seconds, matrix_rate, memory_rate

WARM_UP = 3  # untimed steps: the allocator fills, cuDNN chooses its kernels, the compiler runs

KINDS = {  # kind of operator -> parts of the operators' names; the first that fits counts
    "convolution": ("Conv", "conv"),  # that of ConvPoolNormAct includes the layers behind it
    "pooling, batch norm, activation": ("NormAct",),
    "pooling": ("max_pool", "avg_pool"),
    "batch norm": ("batch_norm",),
    "activation": ("Activation", "threshold", "clamp_min", "elu"),
    "augmentation and resize": (
        *("upsample", "grid_sampler", "index", "reflection_pad"),
        *("aten::flip", "aten::where"),
    ),
    "matrix products (optimizer, classifier)": ("mm",),
    "optimizer": ("_foreach",),
}

# How the profiler's keys of operators begin: PyTorch's, then the functions of our own kernels.
OPERATORS = ("aten::", "_", "ConvPoolNormAct", "PoolNormAct", "AddNormAct", "Activation")


def measure_step(
    recipe: Recipe, dataset: Dataset, device: Device, count: int = 10
) -> dict[str, Any]:
    """Seconds of a step and its parts, and the shares of the machine's peak rates it reaches.

    The first steps of the recipe are measured, so the phase of interest must come first. `parts`
    are mean seconds, each timed with the device idle before and after: on a GPU they add up to
    more than `seconds_per_step`. `operators` are seconds of an uncompiled step.
    """
    run = runs.prepare(recipe, dataset, device)
    counts, scale = run.setup.counts, run.setup.counts.scale(0)
    side = round(scale * run.setup.train.images.shape[-1])
    seconds = step_seconds(run, count)
    peak = device.peak_memory()  # before the rates: they take a GiB themselves
    parts = part_seconds(run, count)
    flops, traffic = cost_of_step(run)
    first = run.setup.train.images[: counts.images_per_step].to(device.name)
    images = shrink(run.setup.normalize(first), scale)
    alone = convolution_rate(run.state.model.train(), images, device)
    matrix, n = matrix_rate(device)
    memory = memory_rate(device)
    return {
        "hardware": hardware(device),
        "commit": commit(),
        "model": network_name(recipe.model),
        "macs_per_image": summarize(run.config, (run.config.in_channels, side, side)).macs,
        "side": side,
        "batch_size": counts.images_per_step,
        "seconds_per_step": seconds,
        "images_per_s": counts.images_per_step / seconds,
        "parts": parts,
        "operators": operator_seconds(run),
        "tflop_per_step": flops / 1e12,
        "tflops": flops / seconds / 1e12,
        "tflops_of_convolutions_alone": alone / 1e12,
        "matrix_size": n,
        "matrix_tflops": matrix,
        "share_of_matrix_rate": flops / seconds / 1e12 / matrix,
        "gb_per_step": traffic / 1e9,
        "memory_gb_per_s": memory / 1e9,
        "share_of_memory_rate": traffic / seconds / memory,
        "peak_memory_mib": peak / 2**20,
    }


def step_seconds(run: runs.Run, count: int) -> float:
    """Wall seconds per step of the training loop, mean of `count` steps in a row."""
    loop = endless(run)
    for _ in range(WARM_UP):
        next(loop)
    watch = Stopwatch(run.setup.device)
    for _ in range(count):
        next(loop)
    return watch("steps") / count


def endless(run: runs.Run, mark: Mark | None = None) -> Iterator[object]:
    """The steps of the training loop, from the start again whenever the recipe ends."""
    while True:
        run.state.step = 0
        yield from steps(run.state, run.setup, mark=mark)


def uncompiled(run: runs.Run, **changed: Any) -> runs.Run:
    """The run without torch.compile, as the counters and the profiler need it."""
    device = replace(run.setup.device, compiled=False, **changed)
    return replace(run, setup=replace(run.setup, device=device))


def part_seconds(run: runs.Run, count: int) -> dict[str, float]:
    """Seconds of each part of a step, timed by the loop itself.

    Mean of `count` steps or a few more: images of several steps are augmented together.
    """
    watch = Stopwatch(run.setup.device)
    loop = endless(run, watch)
    together = steps_augmented_together(run.setup.train, run.setup.counts)
    for _ in range(together):
        next(loop)
    watch.reset()
    measured = together * math.ceil(count / together)
    for _ in range(measured):
        next(loop)
    return {name: seconds / measured for name, seconds in watch.parts.items()}


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operators read and write; views move nothing.

    That is the memory traffic of an eager step if no cache helps.
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
    """(FLOP of matrix products and convolutions, bytes moved) of one uncompiled step."""
    # In float32 images are not laid out in tiles, whose gaps would count as work.
    with FlopCounterMode(display=False) as flops:
        next(endless(uncompiled(run, precision="float32")))
    loop = endless(uncompiled(run))
    next(loop)
    with Traffic() as traffic:
        next(loop)
    return flops.get_total_flops(), traffic.bytes


def convolution_rate(model: nn.Module, images: Tensor, device: Device) -> float:
    """FLOP/s of the model's convolutions, forward and backward, each alone: best of 3.

    images: (N, C, H, W) float, a normalised batch.
    """
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        m.register_forward_pre_hook(lambda m, inputs: calls.append((m, inputs[0])))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with device.autocast():
        model(images)
    for hook in hooks:
        hook.remove()
    seconds, flops = 0.0, 0
    for conv, seen in calls:
        x = seen.detach().requires_grad_(seen.requires_grad)
        forward = device.accelerate(conv)  # the kernels of an uncompiled training step
        both_passes = partial(_forward_backward, forward, x, device)
        with FlopCounterMode(display=False) as counter:
            both_passes()
        flops += counter.get_total_flops()
        seconds += least_seconds(device, both_passes, 3)
    return flops / seconds


def _forward_backward(conv: nn.Module, x: Tensor, device: Device) -> None:
    with device.autocast():
        y = conv(x)
    if y.requires_grad:
        y.backward(torch.ones_like(y))
    for p in (*conv.parameters(), x):
        p.grad = None  # else the next backward would add to it


def operator_seconds(run: runs.Run, count: int = 3) -> dict[str, float]:
    """Seconds of each kind of operator in an uncompiled step, mean of `count` steps."""
    loop = endless(uncompiled(run))
    next(loop)
    kinds = {ProfilerActivity.CPU, run.setup.device.profiled}
    with profile(activities=kinds) as recorded:
        for _ in range(count):
            next(loop)
        run.setup.device.synchronize()
    clock = "self_device_time_total" if len(kinds) > 1 else "self_cpu_time_total"
    microseconds: Counter[str] = Counter()
    for event in recorded.key_averages():
        if event.key.startswith(OPERATORS) or "mkldnn" in event.key:
            microseconds[kind_of(event.key)] += getattr(event, clock)
    return {kind: spent / 1e6 / count for kind, spent in microseconds.items()}


def kind_of(operator: str) -> str:
    """The kind of an operator that the profiler names; convolutions are split by direction."""
    fitting = (kind for kind, parts in KINDS.items() if any(part in operator for part in parts))
    kind = next(fitting, "rest")
    if kind == "convolution":
        return f"{kind}, {'backward' if 'backward' in operator.lower() else 'forward'}"
    return kind
