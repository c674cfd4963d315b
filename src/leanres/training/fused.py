"""Max-pool, batch norm and activation in few passes over memory, on a CPU in bfloat16.

PyTorch runs them one by one, each with its own reading and writing of whole maps: a third of a
step. `fused.c` does them together. It is compiled at first use, in about a second, by the C
compiler that is there; without one, or on other systems than Linux, PyTorch's own kernels are
used.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leanres.data.sources import cache_folder

SOURCE = Path(__file__).with_name("fused.c")
FLAGS = ["-std=c11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"]
# No result here is read from errno or by a trap; without these loops stay scalar.
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
ACTS: dict[type[nn.Module] | None, int] = {None: 0, nn.ReLU: 1, nn.GELU: 2}  # fused.c's enum


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(compiler: str) -> Path:
    """The library's file, made if it is not in the cache. For this source, CPU and compiler."""
    what = [compiler, platform.processor(), torch.__version__, *FLAGS, _cpu(), SOURCE.read_text()]
    name = f"fused-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
    target = cache_folder() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects, made = Path(folder, "fused.o"), Path(folder, name)
        # PyTorch's own OpenMP, or two of them would fight for the cores.
        own = [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*"))][:1]
        for words in (
            [*FLAGS, "-c", str(SOURCE), "-o", str(objects)],
            ["-shared", str(objects), *(own or ["-fopenmp"]), "-o", str(made)],
        ):
            subprocess.run([compiler, *words], check=True, capture_output=True, timeout=60)
        os.replace(made, target)  # whole or absent, also where two processes make it
    return target


def _cpu() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in lines[:40] if line.startswith(("flags", "model")))
    return ""


@dataclass(frozen=True)
class _Batch:
    """Statistics of maps (N, C, H, W) by channel: (C,) float64."""

    rows: int  # pixels of a channel
    mean: Tensor
    var: Tensor
    rstd: Tensor

    @classmethod
    def of(cls, sums: Tensor, rows: int, eps: float) -> _Batch:
        """From each thread's sums of values and of squares, (threads, 2, C)."""
        mean, square = sums.sum(0) / rows
        var = (square - mean * mean).clamp(min=0)
        return cls(rows, mean, var, (var + eps).rsqrt())

    def line(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm, (C,) float32."""
        scale = weight * self.rstd
        return scale.float(), (bias - self.mean * scale).float()

    def gradients(self, sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """By weight and bias, and the lines along x and level that the gradient by x has too.

        sums: each thread's of the gradient by the norm's result, and of its products with x.
        """
        by_bias, by_scale = sums.sum(0)
        by_weight = self.rstd * (by_scale - self.mean * by_bias)
        factor = weight * self.rstd / self.rows
        along = -factor * self.rstd * by_weight
        level = -factor * by_bias - along * self.mean
        return by_weight.float(), by_bias.float(), along.float(), level.float()


def _kernels() -> tuple[ctypes.CDLL, int]:
    lib = library()
    assert lib is not None
    return lib, torch.get_num_threads()


def _sums(threads: int, channels: int) -> Tensor:
    return torch.zeros(threads, 2, channels, dtype=torch.float64)


def _together(maps: Tensor) -> Tensor:
    return maps.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


class _Fused(torch.autograd.Function):
    """(N, C, H, W) bfloat16 -> act(bn(pool(x))), and the batch's mean and variance.

    `weight` and `bias` (C,) float32; `pool` halves the map by a 2x2 maximum.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int, pool: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        lib, threads = _kernels()
        x, where = _together(x), None
        n, c, h, w = x.shape
        sums = _sums(threads, c)
        if pool:
            kept = x.new_empty(n, h // 2, w // 2, c).permute(0, 3, 1, 2)
            where = torch.empty(kept.numel(), dtype=torch.uint8)
            lib.pool(*_(x, n, h, w, c, kept, where, sums, threads))
        else:
            kept = x
            lib.sums_of(*_(x, n * h * w, c, sums, threads))
        batch = _Batch.of(sums, kept.numel() // c, eps)
        scale, shift = batch.line(weight, bias)
        y = torch.empty_like(kept)
        lib.forward(*_(kept, batch.rows, c, scale, shift, act, y, threads))
        ctx.save_for_backward(kept, where, weight, scale, shift)
        ctx.act, ctx.shape, ctx.batch = act, x.shape, batch
        ctx.mark_non_differentiable(batch.mean, batch.var)
        return y, batch.mean, batch.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        kept, where, weight, scale, shift = ctx.saved_tensors
        lib, threads = _kernels()
        dy, (n, c, h, w), rows = _together(dy), ctx.shape, ctx.batch.rows
        sums = _sums(threads, c)
        lib.gradient_sums(*_(kept, dy, rows, c, scale, shift, ctx.act, sums, threads))
        by_weight, by_bias, along, level = ctx.batch.gradients(sums, weight)
        dx = None
        if ctx.needs_input_grad[0]:
            lines = torch.stack((scale, shift, along, level))
            dx = kept.new_empty(n, h, w, c).permute(0, 3, 1, 2)
            if where is None:
                lib.backward(*_(kept, dy, rows, c, lines, ctx.act, dx, threads))
            else:
                lib.unpool(*_(kept, dy, where, n, h, w, c, lines, ctx.act, dx, threads))
        return dx, by_weight, by_bias, None, None, None


class _Join(torch.autograd.Function):
    """(N, C, H, W) bfloat16, twice -> relu(bn(x) + other), and the batch's mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        lib, threads = _kernels()
        x, other, c = _together(x), _together(other), x.shape[1]
        sums = _sums(threads, c)
        lib.sums_of(*_(x, x.numel() // c, c, sums, threads))
        batch = _Batch.of(sums, x.numel() // c, eps)
        scale, shift = batch.line(weight, bias)
        y = torch.empty_like(x)
        lib.join(*_(x, other, batch.rows, c, scale, shift, y, threads))
        ctx.save_for_backward(x, y, weight, scale, shift)
        ctx.batch = batch
        ctx.mark_non_differentiable(batch.mean, batch.var)
        return y, batch.mean, batch.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, scale, shift = ctx.saved_tensors
        lib, threads = _kernels()
        dy, c, rows = _together(dy), x.shape[1], ctx.batch.rows
        sums, dz = _sums(threads, c), torch.empty_like(x)
        lib.join_gradient(*_(x, y, dy, rows, c, dz, sums, threads))
        by_weight, by_bias, along, level = ctx.batch.gradients(sums, weight)
        lines, dx = torch.stack((scale, shift, along, level)), torch.empty_like(x)
        lib.backward(*_(x, dz, rows, c, lines, ACTS[None], dx, threads))
        return dx, dz, by_weight, by_bias, None


class _Activate(torch.autograd.Function):
    """act(x) of bfloat16 maps (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: int) -> Tensor:
        lib, threads = _kernels()
        x, c = _together(x), x.shape[1]
        y = torch.empty_like(x)
        ctx.save_for_backward(x)
        ctx.act, ctx.lines = act, torch.zeros(4, c)  # scale 1, and nothing else
        ctx.lines[0] = 1
        one, zero = ctx.lines[0], ctx.lines[1]
        lib.forward(*_(x, x.numel() // c, c, one, zero, act, y, threads))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        lib, threads = _kernels()
        dx, c = torch.empty_like(x), x.shape[1]
        rows = x.numel() // c
        lib.backward(*_(x, _together(dy), rows, c, ctx.lines, ctx.act, dx, threads))
        return dx, None


def _(*values: Tensor | int) -> list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int]:
    """C's arguments: tensors as pointers, numbers as they are.

    int64_t and int are passed alike on the 64-bit systems that have these instructions.
    """
    return [
        ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else ctypes.c_int64(v)
        for v in values
    ]


def _trains(norm: nn.BatchNorm2d, images: Tensor) -> bool:
    return images.dtype == torch.bfloat16 and norm.training and torch.is_grad_enabled()


@torch.no_grad()
def _track_(norm: nn.BatchNorm2d, rows: int, mean: Tensor, var: Tensor) -> None:
    """Move the running statistics as PyTorch's own batch norm does."""
    assert norm.momentum is not None
    unbiased = var * (rows / max(1, rows - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        assert running is not None
        running.lerp_(new.float(), norm.momentum)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)


class FusedNorm(nn.Module):
    """act(norm(pool(x))) of a network in training; other calls go through PyTorch's kernels."""

    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module | None, pool: bool = False) -> None:
        super().__init__()
        self.norm, self.act, self.pool = norm, act, pool

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if not _trains(norm, images):
            images = nn.functional.max_pool2d(images, 2) if self.pool else images
            images = norm(images)
            return images if self.act is None else self.act(images)
        act = ACTS[None if self.act is None else type(self.act)]
        out, mean, var = _Fused.apply(images, norm.weight, norm.bias, norm.eps, act, self.pool)  # type: ignore[no-untyped-call]
        _track_(norm, out.numel() // out.shape[1], mean, var)
        maps: Tensor = out
        return maps


class FusedJoin(nn.Module):
    """relu(norm(x) + other), likewise."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        norm = self.norm
        if not _trains(norm, images):
            return nn.functional.relu(norm(images) + other)
        out, mean, var = _Join.apply(images, other, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
        _track_(norm, out.numel() // out.shape[1], mean, var)
        maps: Tensor = out
        return maps


class FusedGELU(nn.Module):
    """GELU of the maps of a network in training; other calls go through PyTorch's kernels."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.bfloat16 or images.ndim != 4:
            return nn.functional.gelu(images)
        out: Tensor = _Activate.apply(images, ACTS[nn.GELU])  # type: ignore[no-untyped-call]
        return out
