"""`leanres models`, `leanres summary`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from leanres.models.cost import Summary


def models(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the networks with parameters, MACs and receptive fields."""
    from leanres.models.cost import summarize
    from leanres.models.zoo import MODELS
    from leanres.training.recipes import best_measured

    rows = []
    for name, entry in MODELS.items():
        s, own = summarize(entry.config), best_measured(name)
        rows.append(
            {
                "name": name,
                "params": s.params,
                "macs": s.macs,
                "receptive_field": s.receptive_field,
                "chained_receptive_field": s.chained_receptive_field,
                "reported": entry.reported,
                "own": own and asdict(own),
                "source": entry.source,
                "note": entry.note,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _print_models(rows)


def _print_models(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title in ("params", "MMACs", "field", "chained", "reported %", "own %"):
        table.add_column(title, justify="right")
    table.add_column("source", overflow="fold")
    for row in rows:
        reported, own = row["reported"], row["own"]
        table.add_row(
            row["name"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:,.1f}",
            str(row["receptive_field"]),
            str(row["chained_receptive_field"]),
            "" if reported is None else f"{reported:.2f}",
            "" if own is None else f"{own['accuracy']:.2f} (n={own['n']})",
            f"{row['source']}{'; ' if row['note'] else ''}{row['note']}",
        )
    console().print(table)


def summary(
    name: str = typer.Argument(help="A model of `leanres models`."),
    budget: str = typer.Option("5M", help="Most parameters allowed, such as 5M or 300k."),
    size: int = typer.Option(32, min=1, max=4096, help="Side of the images in pixels."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show a network layer by layer: shapes, parameters, MACs, receptive field, size."""
    from leanres.models.cost import parse_count, summarize
    from leanres.models.zoo import MODELS

    most = parse_count(budget)
    costs = summarize(MODELS[name].config, (3, size, size))
    if as_json:
        within = {"name": name, "budget": most, "within_budget": costs.within(most)}
        typer.echo(json.dumps(within | costs.to_dict(), indent=1))
        return
    _print_summary(name, costs, most)


def _print_summary(name: str, costs: Summary, most: int) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind")
    for title in ("output", "params", "MACs", "field", "chained"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in costs.rows:
        table.add_row(
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            f"{row.params:,}" if row.params else "",
            f"{row.macs:,}" if row.macs else "",
            str(row.receptive_field),
            str(row.chained_receptive_field),
        )
    out = console()
    out.print(table)
    sizes = ", ".join(f"{mib:.2f} MiB {kind}" for kind, mib in costs.size_mib.items())
    verdict = "within" if costs.within(most) else "OVER"
    out.print(
        f"\n{name}: {costs.params:,} params ({verdict} the budget of {most:,}), "
        f"{costs.macs / 1e6:,.1f} MMACs\n{sizes}\n"
        f"receptive field {costs.receptive_field} px "
        f"({costs.global_receptive_field} with the global pool), chained as layer lists count it "
        f"{costs.chained_receptive_field}"
    )
