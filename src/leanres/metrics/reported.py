"""METRICS: the numbers of a result that are reported, and how each is written.

The table is read by the ledger, the command line, the model card, the text report, a run's page and
the comparison of runs. Importing it does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from leanres.registry import Table


class ReportedMetric(NamedTuple):
    """How a number of a result is shown: its label, and its value as text."""

    label: str
    format: Callable[[float], str]


def percent(share: float, digits: int = 2) -> str:
    """A share as text: 0.9206 -> "92.06 %"."""
    return f"{100 * share:.{digits}f} %"


def four_decimals(value: float) -> str:
    """0.28 -> "0.2800"."""
    return f"{value:.4f}"


# Key in a result (run.json, `leanres evaluate --json`) -> how it is shown. To report a further
# metric, add it here and add the function that computes it to `metrics.accuracy.MEASURES`.
METRICS: Table[ReportedMetric] = Table(
    "metric",
    {
        "accuracy": ReportedMetric("accuracy", percent),
        "accuracy_tta": ReportedMetric("with TTA", percent),
        "nll": ReportedMetric("NLL", four_decimals),
        "ece": ReportedMetric("ECE", percent),
    },
)
HEADLINE = ("accuracy", "accuracy_tta")  # shown in a sentence of their own, with n and an interval


def other_metrics(result: Mapping[str, Any]) -> str:
    """All metrics of a result except its accuracy: "NLL 0.2800, ECE 1.20 %"."""
    shown = [
        f"{metric.label} {metric.format(result[key])}"
        for key, metric in METRICS.items()
        if key not in HEADLINE and result.get(key) is not None
    ]
    return ", ".join(shown)
