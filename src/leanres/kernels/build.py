"""Kernels in C for a CPU, compiled where they run.

In bfloat16 `fused.c` does max-pool, batch norm and activation together, `convolve.c`
convolutions with AMX; in float32 `winograd.c` does convolutions.
They are compiled at first use, in about two seconds, by the C compiler that is there, and kept in
the cache; without one, or on other systems than Linux, PyTorch's own kernels are used.
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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from leanres.io import cache_folder

SOURCES = [
    Path(__file__).with_name("csrc") / name for name in ("fused.c", "convolve.c", "winograd.c")
]
SIMD = {"avx512f": "AVX-512", "fma": "AVX2"}  # flag in /proc/cpuinfo -> what the kernels use
FLAGS = ["-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"]
# No result here is read from errno or by a trap; without these loops stay scalar.
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had, `problem()` says why."""
    return _load()[0]


def problem() -> str:
    """Why there are no compiled kernels, and what to do; "" where there are."""
    return _load()[1]


def describe(instructions: str = "") -> str:
    """What computes on a CPU: "own, AVX2", or PyTorch's and why. Instructions by default: SIMD."""
    if problem():
        return f"PyTorch's: {problem()}"
    flags = _cpu().split()
    simd = next((name for flag, name in SIMD.items() if flag in flags), "")
    return f"own, {instructions or simd}" if simd else "PyTorch's: this CPU has no AVX2"


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None, "own kernels are for Linux on x86-64"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None, "no C compiler found, install gcc for about twice the speed"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except PermissionError as error:
        return None, f"cache not writable ({error.filename}), set LEANRES_CACHE to another folder"
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        line = (reason.decode(errors="replace").splitlines() or [type(error).__name__])[0]
        return None, f"{compiler} could not build them ({line})"


def _compiled(compiler: str) -> Path:
    """The library's file, built if it is not in the cache. For this source, CPU and compiler."""
    key = [compiler, torch.__version__, *FLAGS, _cpu(), *(file.read_text() for file in SOURCES)]
    name = f"kernels-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    target = cache_folder() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder, name)
        objects = [Path(folder, source.name).with_suffix(".o") for source in SOURCES]
        # PyTorch's own OpenMP, or two of them would fight for the cores.
        openmp = [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*"))][:1]
        compiles = [
            [*FLAGS, "-c", str(source), "-o", str(o)]
            for source, o in zip(SOURCES, objects, strict=True)
        ]
        link = ["-shared", *map(str, objects), *(openmp or ["-fopenmp"]), "-o", str(built)]
        for arguments in (*compiles, link):
            subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=60)
        os.replace(built, target)  # atomic, also where two processes build it
    return target


def _cpu() -> str:
    with contextlib.suppress(OSError):
        scale_shift = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in scale_shift[:40] if line.startswith(("flags", "model")))
    return ""


@cache
def has_tiles() -> bool:
    """Whether the kernels of `convolve.c` can run: this CPU has AMX, and the system lends it."""
    lib = library()
    return lib is not None and bool(lib.has_tiles())


@cache
def has_fma() -> bool:
    """Whether the kernels of `winograd.c` can run: this CPU has AVX2 and FMA."""
    lib = library()
    return lib is not None and bool(lib.has_fma())


def kernels() -> tuple[ctypes.CDLL, int]:
    """The compiled kernels, where `library()` is there, and with how many threads to call them."""
    lib = library()
    assert lib is not None
    return lib, torch.get_num_threads()


def to_bf16_channels_last(maps: Tensor) -> Tensor:
    """The maps (N, C, H, W) in bfloat16, channels last."""
    return maps.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def as_ctypes(
    *values: Tensor | int | None,
) -> list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int]:
    """C's arguments: tensors as pointers, None as NULL, numbers as they are.

    int64_t and int are passed alike on the 64-bit systems that have these instructions.
    """
    return [
        ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else ctypes.c_int64(v or 0)
        for v in values
    ]
