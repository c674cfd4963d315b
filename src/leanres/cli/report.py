"""`leanres report`: a run's page, or the comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.data.split import Dataset


def report(
    runs: list[Path] = typer.Argument(metavar="RUNS", help="One run folder, or several."),
    data: str | None = options.RUN_DATA,
    layer: list[str] = options.output_option(
        [],
        help="Layer for Grad-CAM (repeatable). Default: the last layers of the two coarsest maps.",
    ),
    budget: str = typer.Option("5M", help="Parameter budget to compare the network with."),
    text: bool = typer.Option(False, "--text", help="Print the essentials instead."),
    out: Path | None = typer.Option(
        None, help="The page. Default: report.html in RUN, or beside the first of several."
    ),
) -> None:
    """Explain a run on one page, or compare several: curves, errors, calibration, Grad-CAM.

    Example: leanres report runs/first --text
    """
    from leanres.models.budget import parse_count
    from leanres.report.compare import verdicts
    from leanres.report.page import gather, write_report
    from leanres.report.record import read_record
    from leanres.report.text import text_report, text_table

    limit = parse_count(budget)
    records = [read_record(run) for run in runs]
    lacks_predictions = any(record.result and record.predictions is None for record in records)
    has_pictures = len(runs) == 1 and not text
    dataset: Dataset | None = None
    notes: list[str] = []
    if has_pictures or lacks_predictions or data is not None:
        dataset, notes = _load_if_here(records[0].info, data)
    if text:
        records = gather(runs, dataset)
    else:
        page = write_report(runs, dataset, out=out, budget=limit, layers=layer)
    options.print_notes([*notes, *(note for record in records for note in record.notes)])
    if not text:
        say(page)
    elif len(records) == 1:
        say(text_report(records[0], limit))
    else:
        print_table(*text_table(records), left=("network",))
        say("\n".join(["", *verdicts(records)]))


def _load_if_here(info: dict[str, Any], data: str | None) -> tuple[Dataset | None, list[str]]:
    """The run's data, or None and a note why not; nothing is downloaded for a report."""
    try:
        return options.load_run_data(info, data, download=False), []
    except UserError as error:
        if data is not None:
            raise
        return None, [f"the run's data was not found ({error})"]
