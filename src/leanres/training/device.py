"""Device: what the hardware offers. A new kind of device is one class and one entry of DEVICES."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from leanres.errors import UserError
from leanres.models.swap_layers import subsample_before_narrow_convs
from leanres.registry import Table

PRECISIONS = ("auto", "float32", "bfloat16")
PRODUCT_S = 0.2  # a matrix product that takes longer is large enough to measure the machine's rate
_MMAP_MAX, _TRIM_THRESHOLD, _HUGE_PAGE_ADVICE = -4, -1, 14  # malloc.h, mman.h
_HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Device:
    """Where and how arithmetic happens; every field is resolved, none is "auto"."""

    name: str  # as PyTorch names it: cpu, cuda, cuda:1
    precision: str  # of convolutions and matrix products; weights stay float32
    compiled: bool  # torch.compile makes the kernels

    kind: ClassVar[str]
    captures_steps: ClassVar[bool] = False  # a compiled step is replayed as one graph
    fused_optimizers: ClassVar[bool] = False  # one kernel updates all parameters
    profiled: ClassVar[ProfilerActivity] = ProfilerActivity.CPU

    @classmethod
    def names(cls) -> list[str]:
        """The devices of this kind that are usable here, the default one first."""
        raise NotImplementedError

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        """Whether the hardware multiplies bfloat16: emulated it is slower than float32."""
        return False

    @classmethod
    def compiles(cls) -> bool:
        """Whether to compile where a recipe does not say."""
        return False

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, channels last (in place, as nn.Module.to is)."""
        return module.to(self.name, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass: its precision. Good for one use."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    def accelerate(self, model: nn.Module) -> nn.Module:
        """What to call in place of `model`, uncompiled: the same parameters, by faster kernels."""
        return _accelerate(model, replace(self, compiled=False))[0]

    @property
    def kernels(self) -> str:
        """Which kernels compute a network: "own, AMX", or PyTorch's and why."""
        return _accelerate(nn.Identity(), self)[1]

    def training_forward(self, model: nn.Module) -> nn.Module:
        """What to call for a training step: by faster kernels, compiled where it is to be."""
        network = _accelerate(model, self)[0]
        # A kernel per image size: a general one is slower at each of a recipe's few.
        return torch.compile(network, dynamic=False) if self.compiled else network  # type: ignore[return-value]

    def reset_compile_cache(self) -> None:
        """Drop the kernels of earlier networks: PyTorch compiles eight of one class at most."""
        if self.compiled:
            torch.compiler.reset()

    def tune(self) -> None:
        """Set this process up for the device: its allocator, or how it chooses kernels."""

    def low_precision_matmul(self) -> AbstractContextManager[object]:
        """Products of float32 matrices in lower precision, where that is fast: for optimizers."""
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait for the device, so that a clock reads finished work."""

    def fork_rng(self) -> AbstractContextManager[object]:
        """Put PyTorch's global generators back at the end of the context."""
        return torch.random.fork_rng(devices=[])

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Within it PyTorch's global generators are seeded; afterwards they are as before."""
        with self.fork_rng():
            torch.manual_seed(seed)
            yield

    def peak_memory(self) -> int:
        """Bytes in use at their most, so far; 0 where the system does not say."""
        return 0

    def model_name(self) -> str | None:
        """The accelerator's own name; None for a CPU, which `hardware` names anyway."""
        return None


class CPU(Device):
    """The processor: bfloat16 with AMX or AVX512-BF16, freed memory kept for the next tensor.

    Not compiled by default: on two cores the eager speed network is faster (docs/log.md).
    """

    kind = "cpu"

    @classmethod
    def names(cls) -> list[str]:
        return ["cpu"]

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        return bool({"amx_bf16", "avx512_bf16"} & set(cpu_info("flags").split()))

    def tune(self) -> None:
        keep_freed_memory()

    @contextlib.contextmanager
    def low_precision_matmul(self) -> Iterator[None]:
        # PyTorch's setting is the process's, so it is put back.
        before = torch.get_float32_matmul_precision()
        if self.precision == "bfloat16":
            torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def peak_memory(self) -> int:
        try:
            import resource
        except ImportError:  # Windows
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


class CUDA(Device):
    """An NVIDIA GPU: compiled kernels, each step captured as one CUDA graph."""

    kind = "cuda"
    captures_steps = True
    fused_optimizers = True
    profiled = ProfilerActivity.CUDA

    @classmethod
    def names(cls) -> list[str]:
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [*["cuda"] * bool(cards), *(f"cuda:{i}" for i in range(cards))]

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    @classmethod
    def compiles(cls) -> bool:
        return any(map(shutil.which, ("cc", "gcc", "clang")))  # Triton's launcher needs one

    def tune(self) -> None:
        torch.backends.cudnn.benchmark = True  # shapes repeat: each is tried out once
        torch.set_float32_matmul_precision("high")  # Muon's products need no 24 bits

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.name)

    def fork_rng(self) -> AbstractContextManager[object]:
        return torch.random.fork_rng(devices=[self.name])

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated(self.name)

    def model_name(self) -> str | None:
        return torch.cuda.get_device_name(self.name)


DEVICES: Table[type[Device]] = Table("device", {"cpu": CPU, "cuda": CUDA})  # the fastest last


def detect(device: str = "auto", precision: str = "auto", compiled: bool | None = None) -> Device:
    """The device to use; arguments that are not "auto" or None are kept as given.

    "auto" is a GPU where there is one, and bfloat16 where the hardware multiplies it. UserError
    for a device that is not usable here.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    known = [name for kind in DEVICES.values() for name in kind.names()]
    if device not in ("auto", *known):
        raise UserError(
            f"device {device!r} is not usable here: give one of auto, {', '.join(known)}"
        )
    if device == "auto":
        device = [kind.names()[0] for kind in DEVICES.values() if kind.names()][-1]
    kind = DEVICES[device.partition(":")[0]]
    if precision == "auto":
        precision = "bfloat16" if kind.multiplies_bfloat16() else "float32"
    return kind(device, precision, kind.compiles() if compiled is None else compiled)


def _accelerate(model: nn.Module, device: Device) -> tuple[nn.Module, str]:
    """The one place that knows of `leanres.kernels`; without that folder PyTorch computes."""
    if device.kind == "cpu":
        model = subsample_before_narrow_convs(model)
    try:
        from leanres.kernels import accelerate
    except ImportError:
        return model, "PyTorch's: leanres.kernels is not installed"
    return accelerate(model, device.name, device.precision, device.compiled)


def keep_freed_memory(reserve_gib: float = 6.0) -> None:
    """Make glibc keep large freed tensors, on huge pages where the kernel lends them.

    By default each is unmapped on free and faulted in again, page by page: 40 % of a training
    epoch on a two-core Xeon. Elsewhere than with glibc it does nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # No separate mapping for any block; the heap's end never goes back.
    if libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1):
        _reserve_huge_pages(libc, reserve_gib)


def _reserve_huge_pages(libc: ctypes.CDLL, gib: float) -> None:
    # One untouched block at the heap's end, advised, then freed: it costs address space only,
    # and every later tensor is cut from it. A re-exec with GLIBC_TUNABLES would do the same.
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = int(min(gib * 2**30, free_bytes / 2))
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, size - 2 * _HUGE_PAGE, _HUGE_PAGE_ADVICE)
        libc.free(block)


class Stopwatch:
    """Seconds between calls by name, the device idle at each; those of one name add up."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.parts: dict[str, float] = {}
        self.device.synchronize()
        self.since = time.perf_counter()

    def __call__(self, name: str) -> float:
        """The seconds since the last call, which are added to those of `name`."""
        self.device.synchronize()
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.parts[name] = self.parts.get(name, 0.0) + seconds
        return seconds


def matrix_rate(device: Device) -> tuple[float, int]:
    """(TFLOP/s, n) of an n x n x n product in the device's precision: best of two.

    n doubles from 256 until a product takes PRODUCT_S, up to 4096, which would take minutes where
    the precision is emulated.
    """
    for n in (256, 512, 1024, 2048, 4096):
        a = torch.ones(n, n, dtype=getattr(torch, device.precision), device=device.name)
        seconds = least_seconds(device, partial(torch.mm, a, a), 2)
        if seconds > PRODUCT_S:
            break
    return 2 * n**3 / seconds / 1e12, n


def memory_rate(device: Device, mib: int = 512) -> float:
    """Bytes per second that a copy reads and writes together: best of three, far beyond caches."""
    source = torch.zeros(mib << 18, device=device.name)
    target = torch.ones_like(source)
    return 2 * (mib << 20) / least_seconds(device, partial(target.copy_, source), 3)


def least_seconds(device: Device, work: Callable[[], object], times: int) -> float:
    """The shortest of `times` calls, the device idle before and after each."""
    watch = Stopwatch(device)
    seconds = []
    for _ in range(times):
        watch.reset()
        work()
        seconds.append(watch("work"))
    return min(seconds)


def hardware(device: Device) -> dict[str, Any]:
    """What a claim about speed must name: processor, cores, memory, versions, kernels."""
    memory = None  # Windows has no sysconf
    if hasattr(os, "sysconf"):
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return {
        "cpu": cpu_info("model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory,
        "gpu": device.model_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.name,
        "precision": device.precision,
        "compiled": device.compiled,
        "kernels": device.kernels,
    }


def cpu_info(key: str) -> str:
    """The first line of /proc/cpuinfo with that key; "" where there is none, as off Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
