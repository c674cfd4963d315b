"""`leanres report`: a run's page, or the comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import PATH, load_run_data
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.data.split import Dataset


def report(
    runs: list[Path] = typer.Argument(metavar="RUN...", help="One run folder, or several."),
    data: str | None = typer.Option(None, help="As in train; default: what the run was given."),
    path: Path | None = PATH,
    out: Path | None = typer.Option(None, help="File; default: report.html in (or beside) RUN."),
    layer: list[str] = typer.Option([], help="Layer for Grad-CAM (repeatable)."),
    budget: str = typer.Option("5M", help="Parameters to hold the network against."),
    text: bool = typer.Option(False, "--text", help="Print the essentials instead."),
) -> None:
    """Explain a run on one page, or compare several: errors, calibration, where it looked."""
    from leanres.models.cost import parse_count
    from leanres.report.page import gather, write_report
    from leanres.report.record import read_run
    from leanres.report.text import text_report

    limit = parse_count(budget)
    records = [read_run(run) for run in runs]
    lacking = any(record.result and record.predictions is None for record in records)
    pictures = len(runs) == 1 and not text
    dataset: Dataset | None = None
    notes: list[str] = []
    if pictures or lacking or data is not None or path is not None:
        dataset, notes = _data(records[0].info, data, path)
    if text:
        records = gather(runs, dataset)
        shown = text_report(records, limit)
    else:
        shown = str(write_report(runs, dataset, out=out, budget=limit, layers=layer))
    for note in (*notes, *(note for record in records for note in record.notes)):
        typer.echo(f"note: {note}", err=True)
    typer.echo(shown)


def _data(
    info: dict[str, Any], data: str | None, path: Path | None
) -> tuple[Dataset | None, list[str]]:
    """The run's data and nothing to say, or None and why; nothing is downloaded for a report."""
    try:
        return load_run_data(info, data, path, download=False), []
    except UserError as error:
        if data is not None or path is not None:
            raise
        return None, [f"the run's data is not at hand ({error})"]
