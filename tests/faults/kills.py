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
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NETWORK = 'model={family="resnet", widths=[8], depths=[1]}'
TINY = ["--set", NETWORK, "--set", "val=200", "--set", "precision=float32"]
DIGITS = ["--data", "digits", "--size", "8", *TINY]
PLAN = "[first]\nrecipe = 'plain-sgd'\nseeds = [0, 1]\n[second]\nrecipe = 'resnet-custom'\n"
LIMIT_S = 600  # of one command: longer means that it hangs


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


def run(words: list[str], folder: Path, kill_after: float | None = None) -> tuple[int, str, float]:
    """A command's exit code (-9: killed), its last lines, and its seconds."""
    began = time.monotonic()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(
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
    """The sha256 of the files that have to be the same."""
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def begin(folder: Path) -> Path:
    """An empty folder with a plan."""
    folder.mkdir()
    (folder / "plan.toml").write_text(PLAN)
    return folder


def chain(command: Command, folder: Path, seconds: float, rng: random.Random) -> tuple[int, str]:
    """Kill and continue until the command ends by itself: the number of kills, and what is wrong.

    Kills come sooner in the first laps, so that the chain ends; later ones let it live longer.
    """
    words, kills = command.words, 0
    while True:
        patience = rng.uniform(0, seconds * min(1.0 + kills / 4, 4))
        code, said, _ = run(words, folder, patience if kills < 40 else None)
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


def main(kills: int, seed: int = 0, names: list[str] | None = None) -> dict[str, Any]:
    """Chains over all commands in turn until so many kills were made."""
    rng, made, chains, wrong = random.Random(seed), Counter[str](), Counter[str](), []
    with TemporaryDirectory() as name:
        root = Path(name)
        chosen = {name: COMMANDS[name] for name in names or COMMANDS}
        right: dict[str, tuple[dict[str, str], float]] = {}
        for name, command in chosen.items():
            folder = begin(root / f"right-{name}")
            code, said, seconds = run(command.words, folder)
            assert code == 0, f"{name}: {said}"
            right[name] = content(folder, command.same), seconds
            assert len(right[name][0]) >= len(command.same), f"{name}: {right[name][0]}"
        while made.total() < kills:
            for name, command in chosen.items():
                folder = begin(root / "chain")
                count, reason = chain(command, folder, right[name][1], rng)
                made[name] += count
                chains[name] += 1
                found = content(folder, command.same)
                differs = [
                    file for file, digest in right[name][0].items() if found.get(file) != digest
                ]
                if reason or differs:
                    wrong.append(f"{name}: {reason or f'other content: {differs}'}")
                shutil.rmtree(folder)
                print(f"kills: {made.total():,} of {kills:,}", file=sys.stderr, flush=True)
    return {"kills": dict(made), "chains": dict(chains), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), 0, sys.argv[2:] or None), indent=1))
