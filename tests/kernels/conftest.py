"""Gradients to compare kernels by, how many threads compute them, and kernels loaded afresh."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.kernels import build


@pytest.fixture
def gradients_of() -> Callable[..., list[Tensor]]:
    """The gradients of a network's weights, each as one vector: in float32, in bfloat16, and in
    bfloat16 by what `wrap` makes of it."""

    def compute(model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
        found = []
        for wrapped, half in ((False, False), (False, True), (True, True)):
            own = copy.deepcopy(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = (wrap(own) if wrapped else own)(images)
            F.cross_entropy(logits.float(), labels).backward()
            weights = [p.grad for p in own.parameters() if p.requires_grad and p.ndim > 1]
            found.append(torch.cat([gradient.flatten() for gradient in weights]))
        return found

    return compute


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def reload_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A monkeypatch to change the machine by: within the test the kernels are loaded again.

    Functions of `build` are cached, so the caches are emptied now, and once the machine is itself
    again.
    """
    cached = (build._load, build.constant)
    with monkeypatch.context() as patch:
        for function in cached:
            function.cache_clear()
        yield patch
    for function in cached:
        function.cache_clear()


EMULATED = Path(__file__).with_name("emulated")
EMULATION = [f"-I{EMULATED}", "-D__AMX_BF16__", "-D__AVX512BF16__", "-Wno-psabi"]


@pytest.fixture
def amx(request: pytest.FixtureRequest) -> None:
    """Kernels with AMX: the CPU's own, or its instructions emulated in C, as slow as that is."""
    if build.library() is not None and not build.has_amx():
        patch = request.getfixturevalue("reload_kernels")
        patch.setattr(build, "FLAGS", [*build.FLAGS, *EMULATION])
    assert build.has_amx(), build.problem()
