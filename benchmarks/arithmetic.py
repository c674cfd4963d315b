"""Plot test accuracy against training FLOP: published records, the source projects, leanres.

    python benchmarks/arithmetic.py docs/arithmetic.png

FLOP do not depend on the machine, seconds do. A training is counted as 6 FLOP per MAC and image,
forward and backward.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from leanres.training.recipes import NAMED_RECIPES, cost

RESULTS = Path(__file__).resolve().parents[1] / "results"
# name -> (PFLOP, test accuracy in percent as its authors report it); all but the last two with
# test-time augmentation. Sources: arXiv:2404.00498, its repository, and the entries' own pages.
PUBLISHED = {
    "cifar10-fast (2019)": (1.15, 94.08),
    "hlb-CIFAR10": (0.59, 94.0),
    "airbench94": (0.36, 94.01),
    "airbench94_muon": (0.29, 94.01),
    "hiverge": (0.27, 94.008),
    "airbench95": (1.4, 95.01),
    "airbench96": (4.9, 96.03),
    "airbench96_faster": (3.1, 96.00),
    "cifar10-fast (2018)": (2.7, 94.08),
    "ResNet-18, 200 epochs": (32.3, 96.0),
}
LOWEST_SHOWN = 88.0  # percent


def measured() -> dict[str, tuple[float, float, float | None]]:
    """Recipe -> (PFLOP, mean accuracy in percent, the same with flip-shift); each recipe once."""
    found = {}
    for name, entry in NAMED_RECIPES.items():
        if entry.measured is None or entry.recipe in (NAMED_RECIPES[n].recipe for n in found):
            continue
        runs = json.loads((RESULTS / entry.measured.results).read_text())["runs"]
        augmented = [100 * run["accuracy_tta"] for run in runs if run.get("tta") == "flip-shift"]
        mean = sum(augmented) / len(augmented) if augmented else None
        found[name] = (cost(entry.recipe) / 1e15, entry.measured.accuracy, mean)
    return found


def reported() -> dict[str, tuple[float, float]]:
    """The accuracies that the source projects report, at their recipes' cost; each network once."""
    found = {}
    for name, entry in NAMED_RECIPES.items():
        if entry.source.startswith("report on") and not name.endswith("-code"):
            at = (cost(entry.recipe) / 1e15, entry.reported or 0.0)
            found[name.removesuffix("-text")] = at
    return found


def main(out: Path) -> None:
    """Draw the picture to `out`."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    series = (
        (PUBLISHED, "o", "#888888", "speed records and a common ResNet-18"),
        (reported(), "s", "#E69F00", "source projects, as reported"),
    )
    for points, shape, colour, label in series:
        shown = {name: at for name, at in points.items() if at[1] >= LOWEST_SHOWN}
        axes.scatter(*zip(*shown.values(), strict=True), marker=shape, c=colour, s=28, label=label)
        for name, (x, y) in shown.items():
            place = {"xytext": (2, 5), "textcoords": "offset points", "rotation": 45}
            axes.annotate(name, (x, y), fontsize=7, color="#444444", **place)
    for place, (name, (x, plain, augmented)) in enumerate(measured().items()):
        label = ("leanres", "leanres, flip-shift") if place == 0 else (None, None)
        axes.scatter(x, plain, c="#0B3C5D", s=40, label=label[0], zorder=3)
        if augmented is not None:
            axes.scatter(x, augmented, c="white", ec="#0B3C5D", s=40, label=label[1], zorder=3)
            axes.plot([x, x], [plain, augmented], c="#0B3C5D", lw=1, zorder=2)
        axes.annotate(
            name, (x, plain), xytext=(7, -4), textcoords="offset points", fontweight="bold"
        )
    axes.set(
        xscale="log",
        xlabel="arithmetic of the training, PFLOP",
        ylabel="test accuracy, %",
        ylim=(LOWEST_SHOWN, 98.2),
        xlim=(0.2, 300),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
