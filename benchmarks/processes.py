"""Images/s of 1 process and of several, in turn in one run, and what the exchange takes of a step.

    python benchmarks/processes.py                     # 1 x 2 threads against 2 x 1, on the CPU
    python benchmarks/processes.py --device cuda --sizes 1 2 4 8 # a card for each process

Every round starts the processes of each size anew, so that they compete for the same minutes, and
the 4096³ product of one process is printed beside. Memory is the proportional share of the mapped
file of the images (PSS), summed over the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.io import write_bytes
from leanres.runs.layout import commit
from leanres.runs.run import prepare
from leanres.training.device import detect, hardware
from leanres.training.distributed import joined
from leanres.training.loop import steps
from leanres.training.recipes import load_recipe
from leanres.training.timing import Stopwatch, matrix_rate

WARM_UP = 2  # steps


def images_pss(dataset: Dataset) -> int:
    """Bytes of this process's share of the memory that its training images lie in; Linux."""
    first = dataset.train.images.data_ptr()
    share, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if "-" in word and not word.endswith(":"):
            low, high = (int(x, 16) for x in word.split("-"))
            inside = low <= first < high
        elif word == "Pss:" and inside:
            share += 1024 * int(line.split()[1])
    return share


def worker(given: argparse.Namespace) -> None:
    """One of the processes: prints its figures as JSON."""
    recipe = load_recipe(given.recipe, {"accumulate": given.accumulate, "seed": 0})
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if given.device == "cuda" else given.device
    device = detect(name, recipe.precision, recipe.compiled)
    device.tune()
    with joined(given.reduction, device.kind) as world:
        run = prepare(recipe, load_data(given.data), device, world=world)
        product = matrix_rate(device)[0]
        world.highest(0)
        watch = Stopwatch(device)
        loop = steps(run.state, run.setup, mark=watch if given.parts else None)
        for _ in islice(loop, WARM_UP):
            pass
        watch.reset()
        device.synchronize()
        began = time.perf_counter()
        for _ in islice(loop, given.steps):
            pass
        device.synchronize()
        took = time.perf_counter() - began
        figures = {
            "images_per_s": given.steps * run.setup.counts.images_per_step / took,
            "tflops": product,
            "parts": watch.parts if given.parts else {},
            "pss": images_pss(run.dataset) if sys.platform == "linux" else 0,
        }
    print(json.dumps(figures))


def measure(given: argparse.Namespace, size: int, threads: int, parts: bool) -> list[Any]:
    """The figures of `size` processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*sys.argv[1:], "--worker", *["--parts"] * parts]
    started = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        env = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, __file__, *words]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="speed")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="of the world")
    parser.add_argument("--accumulate", type=int, default=4, help="parts of a batch")
    parser.add_argument("--reduction", default="exact", choices=("exact", "fast"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the rounds and print what each size reached against the first one."""
    given = options()
    if given.worker:
        worker(given)
        return
    cores = os.cpu_count() or 1
    rates: dict[int, list[float]] = {size: [] for size in given.sizes}
    report: dict[str, Any] = {"command": " ".join(sys.argv), "commit": commit(), "sizes": {}}
    for _ in range(given.rounds):
        for size in given.sizes:
            found = measure(given, size, max(1, cores // size), parts=False)
            rates[size].append(min(one["images_per_s"] for one in found))
            print(
                f"{size} processes: {rates[size][-1]:,.0f} images/s, product"
                f" {found[0]['tflops']:.2f} TFLOP/s",
                flush=True,
            )
    for size in given.sizes:
        found = measure(given, size, max(1, cores // size), parts=True)
        spent = found[0]["parts"]
        ratios = [a / b for a, b in zip(rates[size], rates[given.sizes[0]], strict=True)]
        report["sizes"][size] = {
            "threads": max(1, cores // size),
            "images_per_s": rates[size],
            "against_first": ratios,
            "communication": spent.get("communication", 0.0) / sum(spent.values()),
            "images_pss": sum(one["pss"] for one in found),
        }
        figures = report["sizes"][size]
        print(
            f"{size} x {figures['threads']} threads: median {statistics.median(ratios):.2f} of the"
            f" first, communication {100 * figures['communication']:.1f} % of a step, memory of the"
            f" images {figures['images_pss'] / 2**20:.0f} MiB"
        )
    report["hardware"] = hardware(detect("cpu" if given.device == "cpu" else "cuda"))
    report["torch"] = torch.__version__
    if given.out:
        write_bytes(given.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
