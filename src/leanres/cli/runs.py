"""`leanres runs`: the ledger of all runs and committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from leanres.errors import UserError

app = typer.Typer(help="List, filter and sort all runs; `runs diff A B` compares two.")
RUNS = typer.Option(Path("runs"), "--runs", help="Folder of run folders.")
RESULTS = typer.Option(Path("results"), "--results", help="Folder of committed results.")


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    where: list[str] = typer.Option(
        [], "--where", help="Keep rows that fit: model=resnet20, 'accuracy>0.9' (repeatable)."
    ),
    sort: str = typer.Option("", help="Column to sort by; -accuracy: largest first."),
    show: str = typer.Option("", help="Columns, with commas; default: the usual ones."),
    as_csv: Path | None = typer.Option(None, "--csv", help="Write all columns to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per run."),
    runs: Path = RUNS,
    results: Path = RESULTS,
) -> None:
    """List, filter and sort all runs (runs/*) and committed results (results/*.json)."""
    if context.invoked_subcommand is not None:
        return
    from leanres.runs.ledger import matching, read_ledger, to_csv
    from leanres.runs.ledger import sort as sorted_by

    rows, notes = read_ledger(runs, results)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    for condition in where:
        rows = matching(rows, condition)
    rows = sorted_by(rows, sort) if sort else rows
    if as_csv is not None:
        _write(as_csv, to_csv(rows))
        typer.echo(f"{len(rows)} runs written to {as_csv}")
    elif as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _print(rows, show, runs, results)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _print(rows: list[dict[str, Any]], show: str, runs: Path, results: Path) -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.registry import unknown
    from leanres.runs.ledger import SHOWN, columns

    if not rows:
        typer.echo(f"no runs that fit in {runs}/ and {results}/")
        return
    known = columns(rows)
    usual = [key for key in SHOWN if key in known]
    chosen = [key.strip() for key in show.split(",")] if show else usual
    for key in chosen:
        if key not in known:
            raise UserError(unknown("column", key, known))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for key in chosen:
        table.add_column(key, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, row.get(key)) for key in chosen))
    console().print(table)


def _cell(key: str, value: Any) -> str:
    from leanres.runs.ledger import shown

    if value is None:
        return "-"
    if key in ("accuracy", "accuracy_tta", "ece"):
        return f"{100 * value:.2f} %"
    if isinstance(value, float):
        return f"{value:.4g}"
    if key == "params":
        return f"{value:,}"
    return shown(value)


@app.command()
def diff(
    first: str = typer.Argument(metavar="A", help="A run folder, a results file, or its name."),
    second: str = typer.Argument(metavar="B", help="Another."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    runs: Path = RUNS,
    results: Path = RESULTS,
) -> None:
    """What differs between two runs: in the recipe, and in what came out."""
    from leanres.runs.ledger import diff as compare
    from leanres.runs.ledger import read_entry

    a, b = (read_entry(_find(name, runs, results)) for name in (first, second))
    recipe, outcome = compare(a, b)
    if as_json:
        parts = {"recipe": recipe, "outcome": outcome}
        typer.echo(json.dumps({k: {key: [x, y] for key, x, y in v} for k, v in parts.items()}))
        return
    for title, lines in (("recipe and origin", recipe), ("outcome", outcome)):
        typer.echo(f"{title}:" if lines else f"{title}: the same")
        for key, x, y in lines:
            typer.echo(f"  {key}: {x} -> {y}")


def _find(name: str, runs: Path, results: Path) -> Path:
    """A path as given, or a name within the two folders."""
    for path in (Path(name), runs / name, results / name, results / f"{name}.json"):
        if path.exists():
            return path
    raise UserError(f"no run {name!r}: it is neither a path nor in {runs}/ or {results}/")
