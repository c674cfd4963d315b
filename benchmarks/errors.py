"""What several seeds of one recipe get wrong: the numbers and pictures of docs/errors.md.

python benchmarks/errors.py docs/errors runs/speed-{0,1,2,3,4}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

mpl.use("Agg")

from leanres.data.sources import load_data
from leanres.metrics.calibration import brier, fit_temperature, log_probs, reliability
from leanres.metrics.classification import ece, measure, nll
from leanres.metrics.mistakes import confused_pairs, label_suspects
from leanres.report.figures import confusion_matrix, reliability_diagram
from leanres.report.pictures import image_grid
from leanres.report.record import read_record

SHOWN = 24


def halves_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits divided by a temperature fitted on the other half of the images. (N, K) -> same."""
    scaled = logits.clone()
    for half in (0, 1):
        scaled[half::2] /= fit_temperature(logits[1 - half :: 2], labels[1 - half :: 2])
    return scaled


def calibration(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """ECE, NLL and Brier score of one run, as trained and with temperature scaling."""
    logits = log_probs(probs)
    scaled = halves_temperature(logits, labels)
    found = {"temperature": fit_temperature(logits, labels)}
    for name, scores in (("", logits), ("_scaled", scaled)):
        p = scores.softmax(1)
        found |= {
            f"ece{name}": ece(p, labels),
            f"nll{name}": nll(scores, labels),
            f"brier{name}": brier(p, labels),
        }
    return found


def main(out: Path, folders: list[Path]) -> None:
    """Write the pictures to `out` and print every number as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    runs = [read_record(folder) for folder in folders]
    test = load_data("cifar10").test
    assert test is not None
    labels, classes = test.labels, test.classes
    probs = torch.stack([run.predictions.probs for run in runs])  # (runs, N, K)
    predicted = probs.argmax(2)
    wrong = predicted != labels
    votes = wrong.sum(0)
    mean = probs.mean(0)
    unanimous = (votes == len(runs)) & (predicted == predicted[0]).all(0)
    suspects = label_suspects(mean, labels, len(labels))
    suspects = suspects[unanimous[suspects]]
    facts: dict[str, Any] = {
        "runs": len(runs),
        "accuracy": [measure(p.log(), labels).accuracy for p in probs],
        "accuracy_of_mean": measure(mean.log(), labels).accuracy,
        "images_wrong_in_k_runs": torch.bincount(votes, minlength=len(runs) + 1).tolist(),
        "wrong_in_all_as_the_same_class": int(unanimous.sum()),
        "suspects": len(suspects),
        "pairs_per_run": [
            [classes[p.true], classes[p.predicted], p.count / len(runs)]
            for p in confused_pairs(probs.flatten(0, 1), labels.repeat(len(runs)), 12)
        ],
        "errors_by_class_per_run": {
            name: int(wrong[:, labels == k].sum()) / len(runs) for k, name in enumerate(classes)
        },
        "calibration": [calibration(p, labels) for p in probs],
    }
    print(json.dumps(facts, indent=1))

    shown = suspects[:SHOWN]
    captions = [
        f"{classes[labels[i]]}\n→ {classes[predicted[0, i]]} {100 * mean[i].max():.0f} %"
        for i in shown.tolist()
    ]
    image_grid(test.images[shown], captions).savefig(out / "suspects.png", dpi=110)
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for p in predicted:
        counts.index_put_((labels, p), torch.ones(len(labels), dtype=torch.long), accumulate=True)
    confusion_matrix(counts, classes).savefig(out / "confusion.png", dpi=110)
    logits = log_probs(probs[0])
    before = reliability(probs[0], labels)
    after = reliability(halves_temperature(logits, labels).softmax(1), labels)
    reliability_diagram(before, after).savefig(out / "calibration.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
