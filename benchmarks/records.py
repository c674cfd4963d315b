"""Speed on one GPU against the published records: run each benchmark in turn, print a table.

    python benchmarks/records.py --script airbench94_muon.py --script cifar10_speedrun.py
    python benchmarks/records.py --rehearse     # each benchmark on the CPU, with little work

Each row of the table is one command, of `leanres bench` or peers.py. Its JSON is kept in --out, so
the same call continues after a stop. A record's script finds CIFAR-10 as cifar10/train.pt and
test.pt in its working folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanres.data.sources import load_data
from leanres.data.split import Split
from peers import run_script

CHAIN = ["--augment", "auto_augment,crop,flip,perspective", "--workers", str(os.cpu_count())]
TINY = ["--set", 'model={family="speednet", widths=[8]}', "--set", "epochs=1"]


@dataclass(frozen=True)
class Benchmark:
    """A row of the table: a command, how to show its JSON, and the goal in the same unit."""

    title: str
    arguments: list[str]
    show: Callable[[dict[str, Any]], str]
    goal: str
    rehearsal: list[str]  # options that replace data, device and size


def _warm(found: dict[str, Any]) -> str:
    summary = found["summary"]
    seconds, accuracy = summary["train_seconds"], summary["accuracy_tta"]
    sd = 0 if seconds["sd"] is None else seconds["sd"]
    return (
        f"{seconds['mean']:.2f} ± {sd:.2f} s to {100 * accuracy['mean']:.2f} %"
        f" (n = {summary['n']}; evaluation {summary['evaluate_seconds']['mean']:.2f} s)"
    )


def _cold(found: dict[str, Any]) -> str:
    first, *rest = (run["wall_seconds"] for run in found["runs"])
    return f"{first:.1f} s, then {statistics.mean(rest):.1f} s (n = {len(rest)})"


def _epoch(found: dict[str, Any]) -> str:
    seconds = 50_000 // found["batch_size"] * found["seconds_per_step"]
    return (
        f"{seconds:.2f} s an epoch ({100 * found['share_of_matrix_rate']:.0f} % of the matrix rate)"
    )


def _ratio(found: dict[str, Any]) -> str:
    ours, plain = (found["epoch_seconds"][name][-1] for name in ("leanres", "pytorch"))
    return f"{plain / ours:.1f} times as fast"


DIGITS = ["--data", "digits", "--device", "cpu"]
RACE = [*DIGITS, *TINY, "--n", "2"]
BENCHMARKS = {
    "warm-94": Benchmark(
        "94 %, timed as the records are: warm",
        ["race", "speed", "--warm", "--n", "50"],
        _warm,
        "faster than the scripts below",
        RACE,
    ),
    "cold-94": Benchmark(
        "94 %, cold process: with an empty compile cache, then with a full one",
        ["race", "speed", "--seed", "100", "--n", "4"],
        _cold,
        "60 s (aim 30), then 15 s (aim 8)",
        RACE,
    ),
    "warm-96": Benchmark(
        "96 % under 5 million parameters, timed as the records are: warm",
        ["race", "speed-96", "--warm", "--n", "10", "--target", "96"],
        _warm,
        "12 s (aim 8)",
        RACE,
    ),
    "epoch-resnet26-97": Benchmark(
        "resnet26-97 with its whole augmentation",
        ["step", "--recipe", "resnet26-97", "--steps", "60"],
        _epoch,
        "1.3 s an epoch (aim 0.9)",
        [*DIGITS, *TINY, "--steps", "1"],
    ),
    "peers-resnet26-97": Benchmark(
        "the same beside plain PyTorch with Pillow workers",
        ["peers", "leanres,pytorch", "--model", "resnet26-97", *CHAIN, "--images", "12800"],
        _ratio,
        "",
        [*DIGITS, "--model", "resnet20", "--images", "64", "--batch-size", "32", "--workers", "0"],
    ),
}


def measure(key: str, benchmark: Benchmark, out: Path, rehearse: bool) -> dict[str, Any]:
    """Run the benchmark's command, or read the result of an earlier call."""
    file = out / f"{key}.json"
    if not file.exists():
        rehearsal = benchmark.rehearsal if rehearse else []
        arguments = [*benchmark.arguments, *rehearsal, "--out", str(file)]
        if benchmark.arguments[0] == "race":
            arguments += ["--runs", str(out / "runs")]
        if arguments[0] == "peers":
            arguments[0] = str(Path(__file__).with_name("peers.py"))
        else:
            arguments = ["-m", "leanres", "bench", *arguments]
        with tempfile.TemporaryDirectory() as kernels:  # compiled for this benchmark alone
            own = os.environ | {"TORCHINDUCTOR_CACHE_DIR": kernels}
            subprocess.run([sys.executable, *arguments], check=True, env=own, stdout=sys.stderr)
    return read(file)


def race_script(script: Path, out: Path) -> dict[str, Any]:
    """The accuracy and seconds that a record's script prints, or the result of an earlier call."""
    file = out / f"script-{script.stem}.json"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            dataset = load_data("cifar10")
            assert dataset.test is not None
            _lay_out(dataset.train, Path(folder, "cifar10", "train.pt"))
            _lay_out(dataset.test, Path(folder, "cifar10", "test.pt"))
            with contextlib.chdir(folder):
                found = run_script(script)
        file.write_text(json.dumps(found, indent=1) + "\n")
    return read(file)


def read(file: Path) -> dict[str, Any]:
    """A result that was kept."""
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _lay_out(split: Split, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    images = split.images.permute(0, 2, 3, 1).contiguous()  # (N, 32, 32, 3) bytes
    torch.save({"images": images, "labels": split.labels, "classes": list(split.classes)}, file)


def main() -> None:
    """Run the benchmarks that have no result yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/records"))
    parser.add_argument("--script", type=Path, action="append", default=[])
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    for script in args.script:
        if not script.is_file():
            parser.error(f"no script {script}")
    args.out.mkdir(parents=True, exist_ok=True)
    begun, lines = time.perf_counter(), []
    for key, benchmark in BENCHMARKS.items():
        found = measure(key, benchmark, args.out, args.rehearse)
        lines.append((benchmark.title, benchmark.show(found), benchmark.goal))
    for script in args.script:
        found = race_script(script.resolve(), args.out)
        seconds, accuracy = found["seconds"], found["accuracy"]
        text = f"{seconds['mean']:.2f} s to {100 * accuracy['mean']:.2f} % (n = {found['n']})"
        lines.append((script.name, text, "the record to beat"))
    print("| benchmark | measured | goal |\n|---|---|---|")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print(f"\n{time.perf_counter() - begun:.0f} s; {args.out} holds every result")


if __name__ == "__main__":
    main()
