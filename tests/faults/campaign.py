"""The long form of every fault harness: `make campaign`, about an hour.

    python tests/faults/campaign.py [PART ...]

runs the parts (all, or those named), prints their figures and keeps them in
results/bench/faults.json. Several processes may run different parts side by side.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filesystem
import hostile
import kills
import mutations
import ranks
import sklearn.datasets  # noqa: F401  # here, not in each fork
import torch._dynamo  # noqa: F401  # the same: the first optimizer imports it
import writers
from forks import OK, Outcome, fork
from progress import shown

from leanres.io import locked, write_bytes
from leanres.runs.layout import commit
from leanres.training.device import CPU, hardware

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bench" / "faults.json"
KERNELS = Path(__file__).with_name("kernels.py")
CHECKED = "-O3 -fsanitize=undefined -fsanitize-undefined-trap-on-error"


def compiled() -> dict[str, Any]:
    """300 random shapes between guard pages for each way to compile the kernels."""
    done: dict[str, Any] = {"cases_each": 300, "wrong": []}
    for flags in shown(("-O0", "-O1", "-O3", "-Os", "-O1 -fno-inline", CHECKED), "kernels"):
        command = [sys.executable, str(KERNELS), "300", "0", *flags.split()]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            done["wrong"].append(f"{flags}: exit {ended.returncode}: {ended.stderr[-300:]}")
    return done


def figures_of(end: Outcome) -> dict[str, Any]:
    """The figures that a process returned."""
    if end.code != OK:
        raise RuntimeError(end.message)
    figures: dict[str, Any] = ast.literal_eval(end.message)
    return figures


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kernels": compiled,
    "two_writers": lambda: writers.main(60, rows=500),
    "mutations": lambda: mutations.main(11_000),
    "mutations_of_pages": lambda: mutations.main(550, of="pages"),
    "mutations_of_small_cifar10": lambda: mutations.main(4_000, of="small cifar10"),
    "mutations_of_cifar10": lambda: mutations.main(60, of="cifar10"),
    # In a process of its own: it changes folder and environment.
    "hostile_inputs": lambda: figures_of(fork(hostile.main)),
    "file_system": filesystem.main,
    "kills": lambda: kills.main(60),
    # Without the seconds that an interpreter takes to start: kills that all hit the work itself.
    "kills_of_ranks": lambda: ranks.main(60),
    "kills_of_forks": lambda: kills.main(250, 1, kills.OF_ONE_PROCESS, kills.run_forked),
}


def keep(name: str, figures: dict[str, Any]) -> None:
    """Put a part's figures into the results, which other processes may write too."""
    with locked(RESULTS):
        known = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
        write_bytes(RESULTS, (json.dumps(known | {name: figures}, indent=1) + "\n").encode())


def main(names: list[str]) -> int:
    """Run the parts and write the figures of each as it ends; how many things went wrong."""
    if unknown := set(names) - PARTS.keys():
        raise SystemExit(f"no part {', '.join(sorted(unknown))}: give {', '.join(PARTS)}")
    wrong = 0
    for name in names or PARTS:
        began = time.monotonic()
        print(f"{name}: begins at {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
        try:
            figures = PARTS[name]()
        except Exception as error:  # the other parts run all the same
            figures = {"wrong": [f"the harness itself: {type(error).__name__}: {error}"]}
        figures |= {"seconds": round(time.monotonic() - began), "commit": commit()}
        wrong += len(figures.get("wrong", []))
        print(json.dumps({name: figures}, indent=1), flush=True)
        keep(name, figures | {"hardware": hardware(CPU("cpu", "float32", False))})
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
