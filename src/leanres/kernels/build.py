"""Kernels in C for the CPU: compiled at first use, kept in the cache, called by `call`.

`csrc/fused.c` computes max-pool, batch norm and activation together and `csrc/amx_conv.c`
convolutions, both in bfloat16; `csrc/winograd.c` computes convolutions in float32. They are
compiled for the CPU they run on, in about two seconds, by the machine's own C compiler. Where that
cannot be done `library()` is None, `problem()` says why, and PyTorch's own kernels are used.
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

from leanres.errors import UserError, first_line
from leanres.io import cache_folder

SOURCES = tuple(
    Path(__file__).with_name("csrc") / name for name in ("fused.c", "amx_conv.c", "winograd.c")
)
FLAGS = ["-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"]
# Without these gcc does not vectorise loops that could set errno or trap; nothing reads either.
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
TIMEOUT_S = 60  # of one call of the compiler
DIGEST_BYTES = 32  # of sha256


class BuildError(Exception):
    """The C compiler failed; the message says how."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none, `problem()` says why."""
    return _load()[0]


def problem() -> str:
    """Why there are no compiled kernels, and what to do about it; "" where there are."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None, "own kernels are for Linux on x86-64"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None, "no C compiler found, install gcc for about twice the speed"
    try:
        path = _cached_library(compiler)
    except BuildError as error:
        return None, f"{compiler} could not build them ({first_line(error)})"
    except (OSError, UserError) as error:
        return (
            None,
            f"cache not writable ({first_line(error)}), set LEANRES_CACHE to another folder",
        )
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"cannot load them ({first_line(error)}), set LEANRES_CACHE to another folder"
    return (lib, "") if lib.has_fma() else (None, "this CPU has no AVX2")


def _cached_library(compiler: str) -> Path:
    """The shared library for these sources, this compiler and this CPU; compiled if need be.

    BuildError where the compiler fails, OSError where the cache folder cannot be used.
    """
    key = [compiler, torch.__version__, *FLAGS, _cpu(), *(file.read_text() for file in SOURCES)]
    name = f"kernels-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    target = cache_folder() / name
    if not _is_intact(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = _compile(compiler, Path(folder))
            content = built.read_bytes()
            built.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(built, target)  # atomic: two processes may build it at once
    return target


def _is_intact(path: Path) -> bool:
    """Whether a library ends in the sha256 of all before, which the loader ignores.

    Loading a truncated one may kill the process: its missing pages raise SIGBUS.
    """
    content = path.read_bytes() if path.exists() else b""
    return content[-DIGEST_BYTES:] == hashlib.sha256(content[:-DIGEST_BYTES]).digest()


def _compile(compiler: str, folder: Path) -> Path:
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    built = folder / "kernels.so"
    # PyTorch's own OpenMP: with a second one in the process two pools of threads share the cores.
    openmp = [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*"))][:1]
    for source, compiled in zip(SOURCES, objects, strict=True):
        _run(compiler, *FLAGS, "-c", str(source), "-o", str(compiled))
    link = ["-shared", *map(str, objects), *(openmp or ["-fopenmp"]), "-o", str(built)]
    _run(compiler, *link)
    if not built.exists():
        raise BuildError("it wrote no library")
    return built


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        first = lines[0] if lines else f"exit code {error.returncode}"
        raise BuildError(next((line for line in lines if "error" in line), first)) from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"it took more than {TIMEOUT_S} s") from None
    except OSError as error:
        raise BuildError(str(error)) from None


def _cpu() -> str:
    """The CPU's model and instructions as Linux lists them: a cache may serve several machines."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in lines[:40] if line.startswith(("flags", "model")))
    return ""


@cache
def constant(name: str) -> int:
    """What a function of the compiled kernels without arguments returns; 0 without kernels."""
    lib = library()
    return 0 if lib is None else int(getattr(lib, name)())


def has_amx() -> bool:
    """Whether `amx_conv.c` can run: the CPU has AMX and the system grants its registers."""
    return bool(constant("has_amx"))


def simd() -> str:
    """The vector instructions that the compiled kernels use; "" without kernels."""
    return {32: "AVX-512", 16: "AVX2", 0: ""}[constant("columns_at_once")]


def call(name: str, *values: Tensor | int | None) -> int:
    """Call a function of the compiled kernels on all of PyTorch's threads, its last argument."""
    lib = library()
    assert lib is not None
    return int(getattr(lib, name)(*as_ctypes(*values, torch.get_num_threads())))


def as_ctypes(*values: Tensor | int | None) -> list[ctypes.c_void_p | ctypes.c_int64]:
    """Arguments for C: tensors as pointers to their first value, None as NULL, ints as int64_t.

    An int parameter of C reads the same register as an int64_t on x86-64.
    """
    return [
        ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else ctypes.c_int64(v or 0)
        for v in values
    ]


def to_bf16_channels_last(maps: Tensor) -> Tensor:
    """The maps (N, C, H, W) in bfloat16, channels last."""
    return maps.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
