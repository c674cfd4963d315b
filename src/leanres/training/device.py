"""Device: what the hardware offers. A new kind of device is one class and one entry of DEVICES."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from leanres.errors import UserError
from leanres.metrics.inference import memory_format
from leanres.models.swap_layers import subsample_before_narrow_convs
from leanres.registry import Table
from leanres.training.allocator import keep_freed_memory

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Device:
    """Where and how arithmetic happens; every field is resolved, none is "auto"."""

    name: str  # as PyTorch names it: cpu, cuda, cuda:1, mps, xpu
    precision: str  # of convolutions and matrix products; weights stay float32
    compiled: bool  # torch.compile makes the kernels

    kind: ClassVar[str]
    captures_steps: ClassVar[bool] = False  # a compiled step is replayed as one graph
    fused_optimizers: ClassVar[bool] = False  # one kernel updates all parameters
    profiled: ClassVar[ProfilerActivity] = ProfilerActivity.CPU
    automatic: ClassVar[bool] = True  # "auto" may choose it: we have trained on one

    @classmethod
    def names(cls) -> list[str]:
        """The devices of this kind that are usable here, the default one first."""
        raise NotImplementedError

    @classmethod
    def computes_bfloat16(cls) -> bool:
        """Whether bfloat16 works at all, emulated or not."""
        return True

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        """Whether the hardware multiplies bfloat16: emulated it is slower than float32."""
        return False

    @classmethod
    def compiles(cls) -> bool:
        """Whether to compile where a recipe does not say."""
        return False

    @property
    def augments_on(self) -> str:
        """Where the training images lie and are augmented: that takes float64."""
        return self.name

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, in its memory format (in place, as nn.Module.to is)."""
        return module.to(self.name, memory_format=memory_format(self.name))  # type: ignore[call-overload,no-any-return]

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


class GPU(Device):
    """What the GPUs have in common whose PyTorch modules are alike: torch.cuda and torch.xpu."""

    @classmethod
    def names(cls) -> list[str]:
        module = torch.get_device_module(cls.kind)
        cards = module.device_count() if module.is_available() else 0
        return [*[cls.kind] * bool(cards), *(f"{cls.kind}:{i}" for i in range(cards))]

    @property
    def module(self) -> Any:
        """torch.cuda, or its like."""
        return torch.get_device_module(self.kind)

    def synchronize(self) -> None:
        self.module.synchronize(self.name)

    def fork_rng(self) -> AbstractContextManager[object]:
        return torch.random.fork_rng([self.name], device_type=self.kind)

    def peak_memory(self) -> int:
        return int(self.module.max_memory_allocated(self.name))

    def model_name(self) -> str | None:
        return str(self.module.get_device_name(self.name))


class CUDA(GPU):
    """An NVIDIA GPU: compiled kernels, each step captured as one CUDA graph."""

    kind = "cuda"
    captures_steps = True
    fused_optimizers = True
    profiled = ProfilerActivity.CUDA

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    @classmethod
    def compiles(cls) -> bool:
        return any(map(shutil.which, ("cc", "gcc", "clang")))  # Triton's launcher needs one

    def tune(self) -> None:
        torch.backends.cudnn.benchmark = True  # shapes repeat: each is tried out once
        torch.set_float32_matmul_precision("high")  # Muon's products need no 24 bits


class XPU(GPU):
    """An Intel GPU, by PyTorch's own kernels: not compiled, and no step is captured."""

    kind = "xpu"
    profiled = ProfilerActivity.XPU
    automatic = False

    @classmethod
    def multiplies_bfloat16(cls) -> bool:
        return bool(torch.xpu.is_bf16_supported(including_emulation=False))

    @property
    def augments_on(self) -> str:
        # Arc's first generation computes no float64.
        return self.name if torch.xpu.get_device_properties(self.name).has_fp64 else "cpu"


class MPS(GPU):
    """An Apple GPU, by PyTorch's own kernels: float32, not compiled, and no step is captured.

    Metal has no float64, so images are augmented on the CPU. bfloat16, which the first chips
    emulate, is used only where a recipe asks for it.
    """

    kind = "mps"
    automatic = False

    @classmethod
    def names(cls) -> list[str]:
        return ["mps"] if torch.backends.mps.is_available() else []

    @classmethod
    def computes_bfloat16(cls) -> bool:
        return torch.backends.mps.is_macos_or_newer(14, 0)

    @property
    def augments_on(self) -> str:
        return "cpu"

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def peak_memory(self) -> int:
        return torch.mps.driver_allocated_memory()  # freed memory stays the allocator's

    def model_name(self) -> str | None:
        return torch.backends.mps.get_name()


DEVICES: Table[type[Device]] = Table(  # the fastest last
    "device", {"cpu": CPU, "mps": MPS, "xpu": XPU, "cuda": CUDA}
)


def detect(device: str = "auto", precision: str = "auto", compiled: bool | None = None) -> Device:
    """The device to use; arguments that are not "auto" or None are kept as given.

    "auto" is an NVIDIA GPU where there is one, else the CPU, and bfloat16 where the hardware
    multiplies it; mps (Apple) and xpu (Intel) must be named. UserError for a device that is not
    usable here, or a precision that it lacks.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    known = [name for kind in DEVICES.values() for name in kind.names()]
    if device not in ("auto", *known):
        raise UserError(
            f"device {device!r} is not usable here: give one of auto, {', '.join(known)}"
        )
    if device == "auto":
        device = [k.names()[0] for k in DEVICES.values() if k.automatic and k.names()][-1]
    kind = DEVICES[device.partition(":")[0]]
    if precision == "auto":
        precision = "bfloat16" if kind.multiplies_bfloat16() else "float32"
    if precision == "bfloat16" and not kind.computes_bfloat16():
        raise UserError(f"precision bfloat16: {device} lacks it here; give float32")
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
