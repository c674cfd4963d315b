"""Pictures to augment, and a guard against operations that wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="session")
def photos() -> torch.Tensor:
    """(16, 3, 32, 32) uint8: pieces of two photographs, at two sizes."""
    pieces = []
    for image in load_sample_images().images:
        for shrink in (4, 10):
            whole = Image.fromarray(image)
            small = np.asarray(whole.resize((whole.width // shrink, whole.height // shrink)))
            pieces += [small[2 : 2 + 32, x : x + 32] for x in (0, 8, 16, 24)]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def pictures(photos) -> torch.Tensor:
    """(26, 3, 32, 32) uint8: photographs, random pixels, and edge cases for histograms."""
    rng = torch.Generator().manual_seed(5)
    noise = torch.randint(256, (3, 3, 32, 32), generator=rng, dtype=torch.uint8)
    narrow = torch.randint(90, 140, (2, 3, 32, 32), generator=rng, dtype=torch.uint8)
    ramp = torch.arange(1024).view(1, 1, 32, 32).expand(1, 3, -1, -1).to(torch.uint8)
    flat = torch.tensor([7, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, -1, 32, 32)
    pair = torch.where(noise[:1] < 9, 31, 200).to(torch.uint8)  # two values, unevenly
    last = torch.where(noise[1:2] < 255, 3, 4).to(torch.uint8)  # few pixels hold the lower step
    mostly = torch.where(noise[2:3] < 250, 255, noise[2:3])  # equalize has no step at all
    return torch.cat([photos, noise, narrow, ramp, flat, pair, last, mostly])


class _NoWaiting(TorchDispatchMode):
    """Refuses every operation that copies a value from a GPU to the host."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for arg in args
            if isinstance(arg, (list, tuple))
            for i in arg
        )
        if by_mask or name.split(".")[0] in self.WAITING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_waiting() -> Callable[[], AbstractContextManager[object]]:
    return _NoWaiting
