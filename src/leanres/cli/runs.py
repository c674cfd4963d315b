"""`leanres runs`: all runs and committed results as one table; `leanres runs diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from leanres.cli import options
from leanres.cli.console import counted, print_table, say
from leanres.cli.help import HelpCommand, HelpGroup
from leanres.errors import UserError

app = typer.Typer(name="runs", cls=HelpGroup)
PLACES = "Places"
RUNS = typer.Option(
    Path("runs"), "--runs", metavar="FOLDER", help="Folder of run folders.", rich_help_panel=PLACES
)
RESULTS = typer.Option(
    Path("results"),
    "--results",
    metavar="FOLDER",
    help="Folder of committed results.",
    rich_help_panel=PLACES,
)
DROPPED_FIRST = ("status", "split", "seed", "params", "model")  # on a narrow terminal


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    where: list[str] = typer.Option(
        [],
        help="Keep the rows that meet it: model=resnet20, 'accuracy>0.9' (repeatable).",
        rich_help_panel="Rows and columns",
    ),
    sort: str = typer.Option("", help="Column to sort by; -accuracy: largest first."),
    show: str = typer.Option("", help="Columns to print, comma-separated."),
    runs: Path = RUNS,
    results: Path = RESULTS,
    as_csv: Path | None = options.output_option(
        None, "--csv", help="Write all columns to this file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per run."),
) -> None:
    """List, filter and sort all runs (runs/*) and committed results (results/*.json).

    Example: leanres runs --where 'accuracy>0.5' --sort -accuracy
    """
    if context.invoked_subcommand is not None:
        return
    from leanres.io import write_bytes
    from leanres.runs.ledger import matching, read_ledger, sort_rows, to_csv

    rows, notes = read_ledger(runs, results)
    options.print_notes(notes)
    for condition in where:
        rows = matching(rows, condition)
    rows = sort_rows(rows, sort) if sort else rows
    if as_csv is not None:
        write_bytes(as_csv, to_csv(rows).encode())
        say(f"{counted(len(rows), 'run')} written to {as_csv}")
    elif as_json:
        for row in rows:
            say(json.dumps(row))
    elif rows:
        _print_rows(rows, [key.strip() for key in show.split(",")] if show else [])
    else:
        say(f"no such runs in {runs}/ and {results}/")


def _print_rows(rows: list[dict[str, Any]], chosen: list[str]) -> None:
    """A table of the chosen columns, by default of the ledger's usual ones."""
    from leanres.registry import unknown
    from leanres.runs.ledger import SHOWN, columns

    known = columns(rows)
    for key in chosen:
        if key not in known:
            raise UserError(unknown("column", key, known))
    heads = chosen or [key for key in SHOWN if key in known]
    cells = [[_cell(key, row.get(key)) for key in heads] for row in rows]
    print_table(heads, cells, left=heads, drop=() if chosen else DROPPED_FIRST)


def _cell(key: str, value: Any) -> str:
    from leanres.metrics.classification import METRICS
    from leanres.runs.ledger import shown

    if key == "model" and isinstance(value, dict):
        return f"custom {value.get('family')}"  # as models.zoo.network_name, which imports torch
    if not isinstance(value, int | float):
        return shown(value)
    if key in METRICS:
        return METRICS[key].text(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if key == "params" else shown(value)


@app.command(cls=HelpCommand)
def diff(
    first: str = typer.Argument(metavar="A", help="A run folder, a results file, or its name."),
    second: str = typer.Argument(metavar="B", help="Another."),
    runs: Path = RUNS,
    results: Path = RESULTS,
    as_json: bool = options.output_option(False, "--json", help="Print JSON."),
) -> None:
    """Show what differs between two runs: in the recipe, and in the outcome.

    Example: leanres runs diff first second
    """
    from leanres.runs.ledger import diff_rows, read_row

    a, b = (read_row(_find_run(name, runs, results)) for name in (first, second))
    recipe, outcome = diff_rows(a, b)
    if as_json:
        parts = {"recipe": recipe, "outcome": outcome}
        say(json.dumps({k: {key: [x, y] for key, x, y in v} for k, v in parts.items()}))
        return
    for title, lines in (("recipe and origin", recipe), ("outcome", outcome)):
        say(f"{title}:" if lines else f"{title}: the same")
        for key, x, y in lines:
            say(f"  {key}: {x} -> {y}")


def _find_run(name: str, runs: Path, results: Path) -> Path:
    """A path as given, or a name within the two folders."""
    for path in (Path(name), runs / name, results / name, results / f"{name}.json"):
        if path.exists():
            return path
    raise UserError(f"no run {name!r}: it is neither a path nor in {runs}/ or {results}/")
