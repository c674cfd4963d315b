"""Kills at random moments: the same command, or `resume`, continues to the same result.

Each chain runs one command on scikit-learn's digits, kills all its processes with SIGKILL after a
random time, gives the command again, and so on, until it ends by itself. What it leaves has to be
bit for bit what one undisturbed run of the command left: weights, optimizer state and metrics.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

NETWORK = 'model={family="resnet", widths=[8], depths=[1]}'
TINY = ["--set", NETWORK, "--set", "val=200", "--set", "precision=float32"]
DIGITS = ["--data", "digits", "--size", "8", *TINY]
PLAN = "[first]\nrecipe = 'plain-sgd'\nseeds = [0, 1]\n[second]\nrecipe = 'resnet-custom'\n"
LIMIT_S = 600  # of one command: longer means that it hangs

# (words, folder, seconds until it is killed) -> exit code (-9: killed), last lines, seconds
Runner = Callable[[list[str], Path, float | None], tuple[int, str, float]]


@dataclass(frozen=True)
class Command:
    """A command of leanres, run in an empty folder that may hold a plan.toml."""

    words: list[str]
    again: list[str] | None = None  # what continues it, where that is another command
    same: list[str] = field(default_factory=list)  # patterns of files that must be identical


RUN = [
    "model.safetensors",
    "metrics.jsonl",
    "predictions.parquet",
    "checkpoint/*/state.safetensors",
]
COMMANDS = {
    "train": Command(
        ["train", "plain-sgd", *DIGITS, "--epochs", "3", "--out", "run"],
        ["resume", "run"],
        [f"run/{name}" for name in RUN],
    ),
    "campaign": Command(
        ["campaign", "plan.toml", *DIGITS, "--set", "epochs=1", "--at-once", "2"],
        same=[f"runs/*/{name}" for name in RUN] + ["weights/*.safetensors"],
    ),
    "search": Command(
        ["search", "--budget", "20k", "--multiple", "1", *DIGITS, "--epochs", "2", "--trials", "3"],
        same=["runs/search/best.toml", "runs/search/*/metrics.jsonl"],
    ),
    "compare": Command(
        ["compare", "schedules", *DIGITS, "--epochs", "1", "--seeds", "0", "--out", "compared"],
        same=[f"compared/*/{name}" for name in RUN],
    ),
    "race": Command(
        ["bench", "race", "plain-sgd", *DIGITS, "--set", "epochs=1", "--n", "2", "--target", "1"],
        same=[f"runs/*/{name}" for name in RUN],
    ),
    "find-lr": Command(
        [
            "find-lr",
            "plain-sgd",
            *DIGITS,
            "--steps",
            "60",
            "--lr-min",
            "0.001",
            "--out",
            "curve.png",
        ],
        same=["curve.png"],
    ),
}
OF_ONE_PROCESS = {name: COMMANDS[name] for name in ("train", "find-lr")}


def run(
    words: list[str],
    folder: Path,
    kill_after: float | None = None,
    start: type[subprocess.Popen[str]] = subprocess.Popen,
) -> tuple[int, str, float]:
    """A command in processes of its own, all of which are killed."""
    began = time.monotonic()
    with (folder / "log.txt").open("w+") as log:
        process = start(
            [sys.executable, "-m", "leanres", *words],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT_S if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return process.returncode, log.read()[-1500:], time.monotonic() - began


def content(folder: Path, patterns: list[str]) -> dict[str, str]:
    """The sha256 of the files that have to be the same; of a run's checkpoints, the newest.

    Which older one is kept depends on the time: an epoch that follows a save too soon is not saved.
    """
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    newest = {p.parents[1]: p for p in found if p.parents[1].name == "checkpoint"}
    files = [p for p in found if newest.get(p.parents[1], p) == p]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def begin(folder: Path) -> Path:
    """An empty folder with a plan."""
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    return folder


def chain(
    command: Command, folder: Path, seconds: float, rng: random.Random, start: Runner
) -> tuple[int, str]:
    """Kill and continue until the command ends by itself: the number of kills, and what is wrong.

    Kills come sooner in the first laps, so that the chain ends; later ones let it live longer.
    """
    words, kills = command.words, 0
    while True:
        patience = rng.uniform(0, seconds * min(1.0 + kills / 4, 4))
        code, said, _ = start(words, folder, patience if kills < 40 else None)
        if code == -signal.SIGKILL and kills == 40:
            return kills, f"it has not ended after {LIMIT_S} s"
        if code == -signal.SIGKILL:
            kills += 1
            continue
        if code == 2 and command.again and words is command.words and "exists already" in said:
            words = command.again
            continue
        if code == 2 and command.again and words is command.again and "train" in said:
            words = command.words  # nothing had been written yet
            continue
        if code == 2 and "is finished" in said:  # it was killed after its last write
            code = 0
        return kills, "" if code == 0 else f"exit {code} after {kills} kills: {said[-300:]}"


def undisturbed(command: Command, folder: Path, start: Runner) -> tuple[dict[str, str], float]:
    """What a command leaves that is not killed, and its seconds."""
    code, said, seconds = start(command.words, begin(folder))
    assert code == 0, f"{command.words}: {said}"
    found = content(folder, command.same)
    assert len(found) >= len(command.same), f"{command.words}: {found}"
    return found, seconds


def main(
    kills: int,
    seed: int = 0,
    commands: Mapping[str, Command] = MappingProxyType(COMMANDS),
    start: Runner = run,
) -> dict[str, Any]:
    """Chains over all commands in turn until so many kills were made."""
    rng, made, chains, wrong = random.Random(seed), Counter[str](), Counter[str](), []
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        right = {name: undisturbed(c, root / name, start) for name, c in commands.items()}
        while made.total() < kills:
            for name, command in commands.items():
                files, seconds = right[name]
                folder = begin(root / "chain")
                count, reason = chain(command, folder, seconds, rng, start)
                made[name] += count
                chains[name] += 1
                found = content(folder, command.same)
                differs = [file for file, digest in files.items() if found.get(file) != digest]
                if reason or differs:
                    wrong.append(f"{name}: {reason or f'other content: {differs}'}")
                shutil.rmtree(folder)
            figures = {"kills": dict(made), "chains": dict(chains), "wrong": wrong}
            told = f"kills: {made.total():,} of {kills:,}: {json.dumps(figures)}"
            print(told, file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    chosen = {name: COMMANDS[name] for name in sys.argv[2:]} or COMMANDS
    print(json.dumps(main(int(sys.argv[1]), 0, chosen), indent=1))
