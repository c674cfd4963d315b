"""What the hardware offers: device, precision, memory format, compilation, a warm allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.kernels.fuse import fused
from leanres.kernels.pad_channels import pad_channels
from leanres.kernels.tiled_conv import TiledConv
from leanres.kernels.winograd import WinogradMode

PRECISIONS = ("auto", "float32", "bfloat16")
_MMAP_MAX, _TRIM_THRESHOLD, _HUGE_PAGE_ADVICE = -4, -1, 14  # malloc.h, mman.h
_HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Engine:
    """Where and how arithmetic happens; every field is resolved, none is "auto"."""

    device: str
    precision: str  # of convolutions and matrix products; weights stay float32
    compiled: bool  # kernels by torch.compile and, on a GPU, each step's as one CUDA graph

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass: its precision and, in float32 on a CPU, its convolutions.

        Good for one use.
        """
        kind = torch.device(self.device).type
        if kind == "cpu" and self.precision == "float32" and not self.compiled:
            return WinogradMode()
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, channels last (in place, as nn.Module.to is)."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def forward(self, model: nn.Module) -> nn.Module:
        """What to call for a training step: the model, compiled or by other kernels as it pays."""
        kind, half = torch.device(self.device).type, self.precision == "bfloat16"
        if self.compiled:
            network = pad_channels(model) if kind == "cuda" and half else model
            # A kernel per image size: a general one is slower at each of a recipe's few.
            return torch.compile(network, dynamic=False)  # type: ignore[return-value]
        return TiledConv(fused(model)) if kind == "cpu" and half else model

    def captures(self) -> bool:
        """Whether a step's kernels are captured and replayed (`training.graphs`)."""
        return self.compiled and torch.device(self.device).type == "cuda"

    def reset_compile_cache(self) -> None:
        """Drop the kernels of earlier networks: PyTorch compiles eight of one class at most."""
        if self.compiled:
            torch.compiler.reset()

    def tune(self) -> None:
        """Set this process up for it: a warm allocator on a CPU, the fastest kernels on a GPU."""
        kind = torch.device(self.device).type
        if kind == "cpu":
            keep_freed_memory()
        elif kind == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes repeat: each is tried out once
            torch.set_float32_matmul_precision("high")  # Muon's products need no 24 bits

    @contextlib.contextmanager
    def low_precision_matmul(self) -> Iterator[None]:
        """Products of float32 matrices by bfloat16 where a CPU is fast at it: for the optimizer.

        PyTorch's setting is the process's, so it is put back.
        """
        if torch.device(self.device).type != "cpu" or self.precision != "bfloat16":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock reads finished work."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


def detect(device: str = "auto", precision: str = "auto", compiled: bool | None = None) -> Engine:
    """The engine for this machine; arguments that are not "auto" or None are kept as given.

    bfloat16 where the hardware multiplies it (CUDA from Ampere on, AMX, AVX512-BF16): elsewhere
    its emulation is slower than float32 (four times on an AVX-512 Xeon). Compilation on CUDA only:
    on two cores the eager speed network was the faster one (docs/log.md).
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    kind = _resolve_device(device)
    if precision == "auto":
        precision = "bfloat16" if _multiplies_bfloat16(kind) else "float32"
    if compiled is None:  # the compiler of kernels needs one of C for its launcher
        compiled = kind.type == "cuda" and any(map(shutil.which, ("cc", "gcc", "clang")))
    return Engine(str(kind), precision, compiled)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_multiplies_bfloat16()


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{i}" for i in range(cards))]
    if device not in known:
        raise UserError(
            f"device {device!r} is not usable here: give one of auto, {', '.join(known)}"
        )
    return torch.device(device)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU says that it has AMX tiles or AVX512-BF16 (Linux; elsewhere False)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(_cpu_line("flags").split()))


def keep_freed_memory(reserve_gib: float = 6.0) -> str:
    """Make glibc keep large freed tensors, on huge pages where the kernel lends them.

    By default each is unmapped on free and faulted in again, page by page: 40 % of a training
    epoch on a two-core Xeon. Returns what was done; elsewhere than glibc it does nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "left alone (not glibc)"
    libc = ctypes.CDLL(None)
    # No separate mapping for any block; the heap's end never goes back.
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1)):
        return "left alone (mallopt refused)"
    return "kept, huge pages" if _reserve_huge_pages(libc, reserve_gib) else "kept"


def _reserve_huge_pages(libc: ctypes.CDLL, gib: float) -> bool:
    # One untouched block at the heap's end, advised, then freed: it costs address space only,
    # and every later tensor is cut from it. A re-exec with GLIBC_TUNABLES would do the same.
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = int(min(gib * 2**30, free_bytes / 2))
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return False
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    done = libc.madvise(start, size - 2 * _HUGE_PAGE, _HUGE_PAGE_ADVICE)
    libc.free(block)
    return bool(done == 0)


def matrix_rate(engine: Engine, n: int = 4096) -> float:
    """TFLOP/s of an n x n x n product in the engine's precision: best of two after a small warm-up.

    In another precision it would take minutes where that is emulated.
    """
    a = torch.ones(n, n, dtype=getattr(torch, engine.precision), device=engine.device)
    a[:64] @ a
    best = 0.0
    for _ in range(2):
        engine.synchronize()
        start = time.perf_counter()
        a @ a
        engine.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e12)
    return best


def memory_rate(engine: Engine, mib: int = 512) -> float:
    """Bytes per second that a copy reads and writes together: best of three, far beyond caches."""
    source = torch.zeros(mib << 18, device=engine.device)
    target = torch.ones_like(source)
    best = 0.0
    for _ in range(3):
        engine.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        engine.synchronize()
        best = max(best, 2 * (mib << 20) / (time.perf_counter() - start))
    return best


def hardware(engine: Engine) -> dict[str, object]:
    """What a claim about speed must name: processor, cores, memory, versions, engine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cuda = torch.device(engine.device).type == "cuda"
    return {
        "cpu": _cpu_line("model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name(engine.device) if cuda else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **asdict(engine),
    }


def _cpu_line(key: str) -> str:
    """The first line of /proc/cpuinfo with that key; "" where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


class Normalize(nn.Module):
    """Bytes to what a network reads: (x / 255 - mean) / std per channel.

    (N, C, H, W) uint8, or float in [0, 255] -> float32 of the same shape, channels last.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        # Channel by channel, then moved: three numbers in a row are too few for vector arithmetic.
        floats = (images.to(torch.float32) - self.shift) * self.scale
        return floats.contiguous(memory_format=torch.channels_last)
