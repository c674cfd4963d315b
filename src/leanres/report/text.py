"""The text report: the essentials of one run as lines, of several as a table."""

from __future__ import annotations

from collections.abc import Sequence

from leanres.metrics.calibration import reliability
from leanres.metrics.classification import (
    METRICS,
    SAME_IF_BALANCED,
    accuracy_text,
    confusion,
    other_metrics,
    percent,
)
from leanres.metrics.mistakes import confused_pairs, worst_errors
from leanres.report.compare import cell_text, table_row
from leanres.report.record import Record
from leanres.report.sections import class_rows, duration
from leanres.runs.predictions import Predictions


def text_report(record: Record, budget: int) -> str:
    """A summary of a run in plain text; `budget`: parameters to compare its network with."""
    summary, result = record.cost, record.result
    lines = [
        f"{record.name}: {record.network} on {record.info['data']['name']}",
        f"{summary.params:,} params ({100 * summary.params / budget:.0f} % of {budget:,}),"
        f" {summary.macs / 1e6:,.1f} MMACs, receptive field {summary.field_text}",
    ]
    if result is None:
        lines.append(f"it {record.why_no_result}")
    else:
        lines.append(f"{record.split} accuracy {accuracy_text(result)}")
        lines.append(
            f"{other_metrics(result, short=True)}, trained in {duration(result['train_seconds'])}"
        )
    if record.predictions is not None:
        lines += _error_lines(record.predictions, record.classes)
    lines.append(f"{record.hardware}, commit {record.info['commit']}")
    changes = [f"{key} = {own} (default {default})" for key, default, own in record.recipe_changes]
    lines.append(f"recipe: {', '.join(changes) or 'the default'}")
    if record.command:
        lines.append(f"repeat it: {record.command}")
    return "\n".join(lines)


def _error_lines(found: Predictions, names: Sequence[str]) -> list[str]:
    rows = class_rows(confusion(found.probs, found.labels), names)
    worst = sorted((row["accuracy"], row["name"]) for row in rows if row["n"])[:3]
    pairs = confused_pairs(found.probs, found.labels, 3)
    confused = (
        f"{names[p.true]} → {names[p.predicted]} {p.count} ({percent(p.share, 1)})" for p in pairs
    )
    errors = (
        f"{found.file(i)} ({names[int(found.labels[i])]} → {names[int(found.predicted[i])]})"
        for i in worst_errors(found.probs, found.labels, 3).tolist()
    )
    equal = reliability(found.probs, found.labels, adaptive=True)
    return [
        f"ECE in bins of equal count {percent(equal.ece)}",
        "hardest classes: " + ", ".join(f"{name} {percent(share, 1)}" for share, name in worst),
        "most confused: " + (", ".join(confused) or "none"),
        "most confident errors: " + (", ".join(errors) or "none"),
    ]


def text_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The heads and one row per run: network, epochs, seed and the most telling METRICS."""
    metrics = (metric.label for key, metric in METRICS.items() if key not in SAME_IF_BALANCED)
    heads = ["run", "network", "parameters", "epochs", "seed", *metrics]
    rows = map(table_row, records)
    return heads, [[cell_text(head, row[head]) for head in heads] for row in rows]
