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

from leanres.data.sources import cache_folder

SOURCES = [
    Path(__file__).with_name("csrc") / name for name in ("fused.c", "convolve.c", "winograd.c")
]
FLAGS = ["-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"]
# No result here is read from errno or by a trap; without these loops stay scalar.
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]


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
    what = [compiler, platform.processor(), torch.__version__, *FLAGS, _cpu()]
    what += [source.read_text() for source in SOURCES]
    name = f"kernels-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
    target = cache_folder() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, name)
        objects = [Path(folder, source.name).with_suffix(".o") for source in SOURCES]
        # PyTorch's own OpenMP, or two of them would fight for the cores.
        own = [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*"))][:1]
        for words in (
            *(
                [*FLAGS, "-c", str(source), "-o", str(o)]
                for source, o in zip(SOURCES, objects, strict=True)
            ),
            ["-shared", *map(str, objects), *(own or ["-fopenmp"]), "-o", str(made)],
        ):
            subprocess.run([compiler, *words], check=True, capture_output=True, timeout=60)
        os.replace(made, target)  # whole or absent, also where two processes make it
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
