"""The essentials of one or several runs as lines for the console."""

from __future__ import annotations

from collections.abc import Sequence

from leanres.metrics.calibration import reliability
from leanres.metrics.mistakes import confused_pairs
from leanres.report.compare import cost, table_row, verdicts
from leanres.report.record import Record
from leanres.report.sections import class_rows, duration, percent
from leanres.runs.ledger import differences, shown
from leanres.training.recipe import Recipe


def text_report(records: Sequence[Record], budget: int) -> str:
    """What matters of the runs of `gather`, in plain text; several are compared."""
    if len(records) > 1:
        return "\n".join([*_table(records), "", *verdicts(records)])
    return "\n".join(_one(records[0], budget))


def _one(record: Record, budget: int) -> list[str]:
    summary, data = cost(record), record.info["data"]
    hardware = record.info["hardware"]
    lines = [
        f"{record.name}: {shown(record.info['recipe']['model'])} on {data['name']}",
        f"{summary.params:,} params ({100 * summary.params / budget:.0f} % of {budget:,}),"
        f" {summary.macs / 1e6:,.1f} MMACs, receptive field {summary.receptive_field} px",
    ]
    if record.result is None:
        lines.append(f"no result yet: {len(record.rows)} of {record.epochs} epochs are there")
    else:
        lines += _outcome(record)
    where = hardware.get("gpu") or hardware.get("cpu") or hardware["device"]
    lines.append(f"{where}, {hardware['precision']}, commit {record.info.get('commit')}")
    changes = differences(Recipe().to_dict(), record.info["recipe"])
    told = ", ".join(f"{key} = {own} (default {default})" for key, default, own in changes)
    lines.append(f"recipe: {told or 'the default'}")
    command = (record.info.get("origin") or {}).get("command")
    return lines + ([f"repeat it: {command}"] if command else [])


def _outcome(record: Record) -> list[str]:
    result, (low, high) = record.result, record.interval
    assert result is not None
    tta = f"; {percent(result['accuracy_tta'])} with {result['tta']}"
    lines = [
        f"{record.split} accuracy {percent(result['accuracy'])} of {result['n']:,} (95 % interval"
        f" {100 * low:.2f} to {100 * high:.2f}){tta if result['tta'] != 'none' else ''}",
        f"NLL {result['nll']:.4f} nats, ECE {percent(result['ece'])}, trained in"
        f" {duration(result['train_seconds'])}",
    ]
    found = record.predictions
    if found is None:
        return lines
    rows = [row for row in class_rows(found, record.classes) if row["accuracy"] is not None]
    worst = sorted(rows, key=lambda row: row["accuracy"])[:3]
    pairs = confused_pairs(found.probs, found.labels, 3)
    names = record.classes
    mixed = (
        f"{names[p.true]} → {names[p.predicted]} {p.count} ({percent(p.share, 1)})" for p in pairs
    )
    equal = reliability(found.probs, found.labels, adaptive=True)
    return [
        *lines,
        f"ECE in bins of equal count {percent(equal.ece)}",
        "hardest classes: " + ", ".join(f"{r['name']} {percent(r['accuracy'], 1)}" for r in worst),
        "most confused: " + (", ".join(mixed) or "nothing"),
    ]


def _table(records: Sequence[Record]) -> list[str]:
    """One line a run, columns aligned."""
    wanted = ("run", "network", "parameters", "epochs", "seed", "accuracy", "NLL", "ECE")
    cells = [list(wanted)]
    for record in records:
        row = table_row(record)
        cells.append([_cell(key, row[key]) for key in wanted])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key in ("accuracy", "ECE") and isinstance(value, float):
        return percent(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if key == "parameters" else str(value)
