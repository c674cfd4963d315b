"""The text report: the essentials of one or several runs as lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from leanres.metrics.accuracy import confusion
from leanres.metrics.calibration import reliability
from leanres.metrics.mistakes import confused_pairs
from leanres.metrics.reported import METRICS, other_metrics, percent
from leanres.report.compare import cell_text, network_cost, table_row, verdicts
from leanres.report.record import Record
from leanres.report.sections import class_rows, duration
from leanres.runs.ledger import shown


def text_report(records: Sequence[Record], budget: int) -> str:
    """A summary of the runs of `gather` in plain text; several runs are compared.

    `budget` is the number of parameters that the network is measured against.
    """
    if len(records) > 1:
        return "\n".join([*_table(records), "", *verdicts(records)])
    return "\n".join(_one(records[0], budget))


def _one(record: Record, budget: int) -> list[str]:
    summary, data = network_cost(record), record.info["data"]
    lines = [
        f"{record.name}: {shown(record.info['recipe']['model'])} on {data['name']}",
        f"{summary.params:,} params ({100 * summary.params / budget:.0f} % of {budget:,}),"
        f" {summary.macs / 1e6:,.1f} MMACs, receptive field {summary.receptive_field} px",
    ]
    if record.result is None:
        lines.append(f"no result yet: {len(record.rows)} of {record.epochs} epochs are done")
    else:
        lines += _result_lines(record)
    lines.append(f"{record.hardware}, commit {record.info['commit']}")
    changes = [f"{key} = {own} (default {default})" for key, default, own in record.recipe_changes]
    lines.append(f"recipe: {', '.join(changes) or 'the default'}")
    return lines + ([f"repeat it: {record.command}"] if record.command else [])


def _result_lines(record: Record) -> list[str]:
    result, (low, high) = record.result, record.interval
    assert result is not None
    tta = f"; {percent(result['accuracy_tta'])} with {result['tta']}"
    lines = [
        f"{record.split} accuracy {percent(result['accuracy'])} of {result['n']:,} (95 % interval"
        f" {100 * low:.2f} to {100 * high:.2f}){tta if result['tta'] != 'none' else ''}",
        f"{other_metrics(result)}, trained in {duration(result['train_seconds'])}",
    ]
    found = record.predictions
    if found is None:
        return lines
    names = record.classes
    rows = [
        row
        for row in class_rows(confusion(found.probs, found.labels), names)
        if row["accuracy"] is not None
    ]
    worst = sorted(rows, key=lambda row: row["accuracy"])[:3]
    pairs = confused_pairs(found.probs, found.labels, 3)
    confused = (
        f"{names[p.true]} → {names[p.predicted]} {p.count} ({percent(p.share, 1)})" for p in pairs
    )
    equal = reliability(found.probs, found.labels, adaptive=True)
    return [
        *lines,
        f"ECE in bins of equal count {percent(equal.ece)}",
        "hardest classes: " + ", ".join(f"{r['name']} {percent(r['accuracy'], 1)}" for r in worst),
        "most confused: " + (", ".join(confused) or "none"),
    ]


def _table(records: Sequence[Record]) -> list[str]:
    """One line per run, columns aligned."""
    metrics = (metric.label for metric in METRICS.values())
    columns = ["run", "network", "parameters", "epochs", "seed", *metrics]
    rows = [table_row(record) for record in records]
    cells = [columns, *([cell_text(column, row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
