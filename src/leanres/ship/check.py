"""Check a shipped file: its answers to real images, its size, its latency and its memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leanres.metrics.classification import accuracy_interval, percent
from leanres.metrics.statistics import PairedDifference, mcnemar
from leanres.ship.facts import Answers

Answer = Callable[[Tensor], Tensor]  # uint8 (N, C, size, size) -> probabilities (N, K) float32

DRIFT = 0.02  # most that a probability may change; float16 weights change it by about 0.001
# Of many classes every probability may be below DRIFT: then these two decide. Measured in float16
# on the four shipped networks, and on five untrained ones of 1,000 classes: probabilities change by
# 1.2 % of the largest at most, and all images but ties of 0.03 % keep their class.
RELATIVE_DRIFT = 0.05  # most that a probability may change, as a share of the image's largest
KEPT = 0.98  # of the images that are no tie, the least share that keep their class
_TIE = 0.001  # relative difference of the two largest probabilities
# int8 moves probabilities by 0.1 and still is right as often: there accuracy and class decide.
MAX_LOSS = 0.01  # most that the accuracy may fall

BATCH = 100  # images at a time
RUNS, SECONDS = 50, 0.2  # of a latency, whichever comes first
LEAST_RUNS = 5
CLEAR_PEAK = "5"  # what /proc/self/clear_refs takes to forget the peak of the resident memory


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a file answers real images, beside the network that it was made of.

    `agreement` is the share of the images that keep their class, `drift` the largest change of a
    probability. `latency_ms` is the median of one image on one thread, `memory_mib` what the
    process grew by while the file was loaded and answered it; None where that is not known.
    """

    path: Path
    bytes: int
    images: int
    agreement: float | None
    drift: float | None
    precision: str
    runtime: str
    latency_ms: float
    memory_mib: float | None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    network_accuracy: float | None = None
    difference: PairedDifference | None = None

    def rows(self) -> dict[str, str]:
        """The check as text: what was measured -> its value."""
        rows = {"checked on": f"{self.images:,} images, in {self.precision} by {self.runtime}"}
        if self.accuracy is not None and self.low is not None and self.high is not None:
            interval = f"95 % interval {100 * self.low:.2f} to {percent(self.high)}"
            rows["accuracy"] = f"{percent(self.accuracy)} ({interval})"
        if self.network_accuracy is not None and self.difference is not None:
            rows["network"] = f"{percent(self.network_accuracy)}; {_points(self.difference)}"
        if self.agreement is not None and self.drift is not None:
            rows["answers"] = f"{percent(self.agreement)} keep their class"
            rows["drift"] = f"{self.drift:.2g}, the largest change of a probability"
        rows["size"] = f"{self.bytes / 2**20:.2f} MiB"
        rows["latency"] = f"{self.latency_ms:.2f} ms: one image, one thread, median"
        if self.memory_mib is not None:
            rows["memory"] = f"{self.memory_mib:.1f} MiB more while it loads and answers an image"
        return rows


def _points(d: PairedDifference) -> str:
    """The file's accuracy minus the network's, on the same images."""
    assert d.low is not None
    assert d.high is not None
    interval = f"95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f}"
    return f"difference {100 * d.difference:+.2f} points ({interval})"


@dataclass(frozen=True)
class Images:
    """Real images uint8 (N, C, size, size), their labels (N,) if known, the network's answers."""

    pixels: Tensor
    labels: Tensor | None
    expected: Answers | None  # None where the network is not at hand and answered other images
    temperature: float = 1.0  # of the file and of the network's answers


def check(
    path: Path, load: Callable[[Path], Answer], runtime: str, images: Images, is_int8: bool
) -> tuple[Check, str]:
    """Run a file on images: what it did, and why it is to be refused, or ""."""
    probs, latency_ms, memory_mib = _run(path, load, images.pixels)
    agreement = drift = network = difference = None
    accuracy = low = high = None
    problem = "" if probs.isfinite().all() else "its probabilities are not finite"
    if images.labels is not None:
        right = probs.argmax(1) == images.labels
        accuracy = float(right.double().mean())
        low, high = accuracy_interval({"accuracy": accuracy, "n": len(right)})
    if (expected := images.expected) is not None:
        agreement = float((probs.argmax(1) == expected.classes).double().mean())
        drift = float(_drift(expected, probs).max())
        if images.labels is not None:
            before = expected.classes == images.labels
            network, difference = float(before.double().mean()), mcnemar(before, right)
        lost = -difference.difference if difference else 0.0
        problem = problem or (
            _int8_problem(agreement, lost) if is_int8 else _float_problem(images, expected, probs)
        )
    done = Check(
        path=path,
        bytes=path.stat().st_size,
        images=len(probs),
        agreement=agreement,
        drift=drift,
        precision="int8" if is_int8 else "float32",
        runtime=runtime,
        latency_ms=latency_ms,
        memory_mib=memory_mib,
        accuracy=accuracy,
        low=low,
        high=high,
        network_accuracy=network,
        difference=difference,
    )
    return done, problem


def _run(
    path: Path, load: Callable[[Path], Answer], images: Tensor
) -> tuple[Tensor, float, float | None]:
    """Probabilities (N, K) of the images, milliseconds of one, and the memory that it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        load(path)(images[:1])  # what the runtime itself takes, once, is not the file's
        before = _resident_kib(peak=False)
        answer = load(path)
        answer(images[:1])
        after = _resident_kib(peak=True)
        latency_ms = _latency_ms(answer, images[:1])
    finally:
        torch.set_num_threads(threads)
    probs = torch.cat([answer(part) for part in torch.split(images, BATCH)])
    grown = None if before is None or after is None else max(0, after - before) / 1024
    return probs, latency_ms, grown


def _latency_ms(answer: Answer, image: Tensor) -> float:
    times: list[float] = []
    while len(times) < LEAST_RUNS or (len(times) < RUNS and sum(times) < SECONDS):
        start = time.perf_counter()
        answer(image)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _resident_kib(peak: bool) -> int | None:
    """KiB of this process in memory, or their `peak` since the last call without it; of Linux."""
    with suppress(OSError, AttributeError, ValueError):
        if not peak:
            ctypes.CDLL(None).malloc_trim(0)  # freed memory would be used again, unseen
            Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
        lines = Path("/proc/self/status").read_text().splitlines()
        key = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) for line in lines if line.startswith(key))
    return None


def _drift(expected: Answers, probs: Tensor) -> Tensor:
    """The largest change of each image's probabilities (N, K), or of all that a file knows. (N,)"""
    if expected.probs is not None:
        return (probs - expected.probs).abs().amax(1)
    return (probs.gather(1, expected.classes[:, None])[:, 0] - expected.top).abs()


def _float_problem(images: Images, expected: Answers, probs: Tensor) -> str:
    """How a float file's probabilities (N, K) differ from the network's; empty where they may.

    A temperature below 1 multiplies every change of the logits by its inverse, which is not the
    file's doing: changes are divided by it again.
    """
    scale = min(1.0, images.temperature)
    drift = scale * _drift(expected, probs)
    most, relative = float(drift.max()), float((drift / expected.top).max())
    if not most < DRIFT:
        return f"it would change a probability by {most:.2g}, and at most {DRIFT} is accepted"
    if relative >= RELATIVE_DRIFT:
        return (
            f"it would change a probability by {100 * relative:.2g} % of the image's largest, and"
            f" at most {100 * RELATIVE_DRIFT:g} % is accepted"
        )
    kept = (probs.argmax(1) == expected.classes)[scale * expected.margin > _TIE * expected.top]
    return _kept_problem(float(kept.double().mean()), len(kept)) if len(kept) else ""


def _int8_problem(agreement: float, lost: float) -> str:
    """Why an int8 file is refused, by the share of classes it keeps and the accuracy it loses."""
    if lost > MAX_LOSS:
        most = f"at most {100 * MAX_LOSS:g} % is accepted"
        return f"it would lose {percent(lost)} of accuracy, and {most}"
    return _kept_problem(agreement)


def _kept_problem(share: float, count: int | None = None) -> str:
    if share >= KEPT:
        return ""
    images = "the images" if count is None else f"{count:,} images"
    return (
        f"{100 * share:.1f} % of {images} would keep their class, and at least"
        f" {100 * KEPT:g} % have to"
    )
