"""Kills of one of several processes that train together, and what the others save.

Each try trains on the digits in two to four processes, kills one of them with SIGKILL (or stops it
with SIGTERM) at a random time, and continues in one, two or four. The result has to be bit for bit
what one undisturbed process left.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from forks import ForkedPopen, free_port, ranked
from kills import RUN, content
from progress import shown

WORDS = ["train", "digits", "--data", "digits", "--size", "16", "--epochs", "3", "--no-report"]
SETTINGS = (
    "model={family='speednet', widths=[8]}",
    "accumulate=4",
    "batch_size=60",
    "val=200",
    "ema=0.9",
    "augment=['crop']",
    "mix=['cutmix']",
)
TRAIN = [*WORDS, *(word for setting in SETTINGS for word in ("--set", setting)), "--out", "run"]
END_S = 30  # in which the others must have ended
SAID = ("saved", "has ended", "SIGTERM", "holds model.safetensors")  # stopped, lost, or complete


def start(words: list[str], folder: Path, size: int) -> list[subprocess.Popen[str]]:
    """The processes of a training, as torchrun would start them; they write to log.txt."""
    port = free_port()
    with (folder / "log.txt").open("a") as log:
        return [
            ForkedPopen(
                [sys.executable, "-m", "leanres", *words],
                cwd=folder,
                env=ranked(rank, size, port) if size > 1 else {},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for rank in range(size)
        ]


def begun(folder: Path, processes: list[subprocess.Popen[str]]) -> bool:
    """Wait until the run has its first checkpoint; False where a process has ended before."""
    while not (folder / "run" / "run.json").exists():
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.02)
    return True


def try_once(folder: Path, rng: random.Random, number: int) -> tuple[str, str]:
    """Signal one process, then continue the run. -> how it ended, what is wrong."""
    size = rng.choice((2, 2, 3, 4))
    processes = start(TRAIN, folder, size)
    if not begun(folder, processes):
        return "failed", (folder / "log.txt").read_text()[-500:]
    time.sleep(rng.uniform(0, 3))
    victim = processes[rng.randrange(size)]
    clock = time.monotonic()
    victim.send_signal(number)
    codes = [process.wait(4 * END_S) for process in processes]
    took, log = time.monotonic() - clock, (folder / "log.txt").read_text()
    if not any(codes):
        return "finished before", ""
    wrong = []
    wrong, expected = [], {-number, 1} if number == signal.SIGKILL else {128 + number}
    if "saved" not in log or "stopped by SIGTERM" in log:  # before the first step, after the last
        expected |= {0, 1}
    if took > END_S:
        wrong.append(f"it ended after {took:.0f} s")
    if {*codes} - expected:
        wrong.append(f"exit codes {codes}")
    if "Traceback" in log or not any(word in log for word in SAID):
        wrong.append(f"said {log[-500:]}")
    again = start(["resume", "run", "--no-report"], folder, rng.choice((1, 2, 4)))
    codes = [process.wait(4 * END_S) for process in again]
    log = (folder / "log.txt").read_text()
    if any(codes) and "is finished" not in log:
        wrong.append(f"resume: {log[-500:]}")
    return "stopped" if "saved" in log else "ended", "; ".join(wrong)


def main(tries: int, seed: int = 0) -> dict[str, Any]:
    """Figures of so many tries: how they ended, and what was wrong."""
    rng, ends, wrong = random.Random(seed), Counter[str](), list[str]()
    with TemporaryDirectory() as place:
        (whole := Path(place, "whole")).mkdir()
        assert start(TRAIN, whole, 1)[0].wait(4 * END_S) == 0
        expected = content(whole, [f"run/{name}" for name in RUN])
        for i in shown(range(tries), "one of several processes killed"):
            (folder := Path(place, str(i))).mkdir()
            number = signal.SIGTERM if i % 5 == 4 else signal.SIGKILL
            end, problem = try_once(folder, rng, number)
            ends[f"{signal.Signals(number).name}: {end}"] += 1
            found = content(folder, [f"run/{name}" for name in RUN])
            different = [name for name in expected if found.get(name) != expected[name]]
            if problem or different:
                wrong.append(f"try {i}: {problem}, other content: {different}")
    return {"tries": tries, "ends": dict(ends), "wrong": wrong}
