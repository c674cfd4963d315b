"""The README's picture of a run: its curve, accuracy per class, most confident errors.

python benchmarks/first_picture.py runs/speed-1 docs/first-result.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import torch

mpl.use("Agg")
from matplotlib import pyplot as plt

from leanres.data.sources import load_data
from leanres.metrics.mistakes import worst_errors


def main(run: Path, out: Path) -> None:
    """Draw the run folder `run` to the picture `out`."""
    info = json.loads((run / "run.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = pq.read_table(run / "predictions.parquet")
    test = load_data(info["data"]["name"]).test
    assert test is not None
    probs = torch.tensor(np.stack([table[f"p_{name}"].to_numpy() for name in test.classes], 1))
    result = info["result"]
    figure = plt.figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1.1, 1.5))
    axes = left.subplots()
    axes.plot(range(1, len(rows) + 1), [100 * r["train_accuracy"] for r in rows], "o-", ms=3)
    axes.axhline(100 * result["accuracy"], color="tab:red", lw=1, label="test, at the end")
    axes.set(xlabel="epoch", ylabel="accuracy, %", title="training images, as augmented")
    axes.legend(frameon=False, loc="lower right")
    axes = middle.subplots()
    shares = [100 * share for share in result["per_class"]]
    axes.barh(test.classes, shares, color="tab:blue")
    axes.invert_yaxis()
    axes.set(xlim=(min(shares) - 5, 100), xlabel="test accuracy, %", title="per class")
    for row, share in enumerate(shares):
        axes.text(share - 0.4, row, f"{share:.1f}", va="center", ha="right", color="white")
    right.suptitle("most confident errors: true → predicted", fontsize=10)
    grid = right.subplots(2, 5)
    for index, axes in zip(worst_errors(probs, test.labels, 10).tolist(), grid.flat, strict=True):
        axes.imshow(test.images[index].permute(1, 2, 0))
        true, predicted = test.classes[test.labels[index]], test.classes[probs[index].argmax()]
        axes.set_title(f"{true}\n→ {predicted}", fontsize=7)
        axes.axis("off")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
