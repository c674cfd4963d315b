"""Run the main job with several seeds, each in a cold process, and write a ledger entry.

    python benchmarks/repeat.py --seeds 0 1 2 3 4 --out results/speed-94-cpu.json

Each run is `leanres train` as a user types it; its wall clock includes the interpreter, the data
and the final evaluation. Beside it stands the machine's rate on a 4096^3 bfloat16 product just
before, because shared machines drift. Seeds that the file holds already are not run again; one
that was cut off is resumed, which spoils its wall clock (left out then) and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from leanres.training.engine import detect, matrix_rate


def one_run(recipe: str, seed: int, folder: Path, extra: list[str]) -> dict[str, object]:
    """Train one seed in a process of its own, or go on where such a process was cut off."""
    rate = {
        str(dtype).removeprefix("torch."): round(matrix_rate(detect(), dtype=dtype), 3)
        for dtype in (torch.bfloat16, torch.float32)
    }
    cut_off = folder.exists()
    fresh = ["train", recipe, "--seed", str(seed), "--out", str(folder), *extra]
    words = ["resume", str(folder)] if cut_off else fresh
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "leanres", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall = None if cut_off else round(time.perf_counter() - begun, 1)
    result = json.loads(done.stdout.splitlines()[-1])
    info = json.loads((folder / "run.json").read_text())
    kept = ("accuracy", "accuracy_tta", "tta", "nll", "ece", "n", "params", "train_seconds")
    return {
        "seed": seed,
        **{key: result[key] for key in kept},
        "wall_seconds": wall,
        "matrix_tflops": rate,
        "commit": info["commit"],
        "started": info["started"],
        "hardware": info["hardware"],
        "fingerprints": info["data"]["fingerprints"],
        "recipe": info["recipe"],
        "epochs": [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()],
    }


def summary(runs: list[dict[str, float]]) -> dict[str, object]:
    """n, and mean and sample standard deviation of each figure."""
    figures: dict[str, object] = {"n": len(runs)}
    for key in ("accuracy", "accuracy_tta", "train_seconds", "wall_seconds"):
        values = [run[key] for run in runs if run[key] is not None]
        mean = statistics.mean(values) if values else None
        sd = statistics.stdev(values) if len(values) > 1 else None
        figures[key] = {"mean": mean, "sd": sd}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, required=True)
    args, extra = parser.parse_known_args()
    ledger = json.loads(args.out.read_text()) if args.out.exists() else {"runs": []}
    for seed in sorted(set(args.seeds) - {run["seed"] for run in ledger["runs"]}):
        folder = args.runs / f"{args.out.stem}-{seed}"
        ledger["runs"].append(one_run(args.recipe, seed, folder, extra))
        ledger["command"] = " ".join(["python", *sys.argv])
        ledger["summary"] = summary(ledger["runs"])
        args.out.write_text(json.dumps(ledger, indent=1) + "\n")
        print(json.dumps(ledger["summary"]), flush=True)


if __name__ == "__main__":
    main()
