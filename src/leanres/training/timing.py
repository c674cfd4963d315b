"""Timing: a stopwatch that waits for the device, and the machine's peak rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from leanres.training.device import Device

PRODUCT_S = 0.2  # a matrix product that takes longer is large enough to measure the machine's rate


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
