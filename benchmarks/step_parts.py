"""Where the time of a training step goes, and how near it comes to its convolutions alone.

    python benchmarks/step_parts.py [--steps 12] [--scale 1.0] [--out results/step-parts.json]

Parts come from the profiler's own times of the operators (self CPU time); the convolutions alone
are timed one by one on tensors of the same shapes, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from leanres.data.sources import load
from leanres.data.split import channel_stats
from leanres.models.budget import summarize
from leanres.models.zoo import resolve
from leanres.training.engine import (
    Engine,
    Normalize,
    detect,
    hardware,
    keep_freed_memory,
    matrix_rate,
)
from leanres.training.loop import start, steps
from leanres.training.recipe import Recipe

PARTS = {  # operator's name contains -> part
    "convolution_backward": "convolution, backward",
    "convolution": "convolution, forward",
    "max_pool2d": "pooling",
    "batch_norm": "batch norm",
    "threshold_backward": "activation",
    "clamp_min": "activation",
    "relu": "activation",
    "addmm": "optimizer and classifier",
    "aten::mm": "optimizer and classifier",
    "_foreach": "optimizer and classifier",
    "upsample": "data, augmentation, resize",
    "index": "data, augmentation, resize",
    "reflection_pad": "data, augmentation, resize",
    "aten::flip": "data, augmentation, resize",
    "aten::where": "data, augmentation, resize",
}


def part_of(name: str) -> str:
    return next((part for key, part in PARTS.items() if key in name), "rest")


def profile_steps(recipe: Recipe, count: int, engine: Engine) -> tuple[dict[str, float], float]:
    """Seconds per step by part, and the wall seconds per step without the profiler."""
    train = load("cifar10").train
    normalize = Normalize(*channel_stats(train))
    state = start(recipe, train, normalize, engine)
    run = steps(state, train, recipe, normalize, engine)
    for _ in range(3):
        next(run)
    begun = time.perf_counter()
    for _ in range(count):
        next(run)
    wall = (time.perf_counter() - begun) / count
    with profile(activities=[ProfilerActivity.CPU]) as recorded, record_function("steps"):
        for _ in range(3):
            next(run)
    seconds: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        if event.key.startswith("aten::") or "mkldnn" in event.key:
            seconds[part_of(event.key)] += event.self_cpu_time_total / 3e6
    return dict(seconds), wall


def convolutions_alone(recipe: Recipe, side: int, engine: Engine) -> tuple[float, float]:
    """(seconds, FLOP) of forward and backward of every convolution, each run on its own."""
    model = engine.place(resolve(recipe.model).build())
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        m.register_forward_pre_hook(lambda m, x: shapes.append((m, x[0].shape)))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    model(torch.zeros(recipe.batch_size, 3, side, side))
    for hook in hooks:
        hook.remove()
    seconds = flop = 0.0
    for i, (conv, shape) in enumerate(shapes):
        x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_(i > 1)
        x.grad = None
        with engine.autocast():
            y = conv(x)
            grad = torch.randn_like(y)
            wanted = [p for p in (*conv.parameters(), x) if p.requires_grad]
            best = 9e9
            for _ in range(3):
                begun = time.perf_counter()
                torch.autograd.grad(conv(x), wanted, grad)
                best = min(best, time.perf_counter() - begun)
        seconds += best
        passes = 1 + sum(p.requires_grad and p.ndim == 4 for p in (conv.weight, x))
        flop += 2 * y.numel() * conv.weight[0].numel() * passes
    return seconds, flop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    kept = keep_freed_memory()
    engine = detect("cpu")
    # the stem is frozen from the start: most of the recipe's steps at full size run so
    recipe = Recipe(resolution=((0.0, args.scale),), freeze_stem_at=0.0)
    parts, wall = profile_steps(recipe, args.steps, engine)
    alone, flop = convolutions_alone(recipe, round(32 * args.scale), engine)
    total = sum(parts.values())
    report = {
        "hardware": hardware(engine),
        "allocator": kept,
        "matrix_tflops_bfloat16": round(matrix_rate(engine), 3),
        "matrix_tflops_float32": round(matrix_rate(engine, dtype=torch.float32), 3),
        "macs_per_image": summarize(resolve(recipe.model)).macs,
        "seconds_per_step": round(wall, 4),
        "images_per_second": round(recipe.batch_size / wall, 1),
        "tflops_of_step": round(flop / wall / 1e12, 3),
        "tflops_of_convolutions_alone": round(flop / alone / 1e12, 3),
        "parts": {k: round(v / total, 4) for k, v in sorted(parts.items(), key=lambda p: -p[1])},
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
