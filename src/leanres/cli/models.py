"""`leanres models`, `leanres summary`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import complete
from leanres.cli.console import print_table, say
from leanres.cli.options import JSON

if TYPE_CHECKING:
    from leanres.models.cost import Summary
    from leanres.training.recipes import MeasuredResult


def models(as_json: bool = JSON) -> None:
    """List the networks with parameters, MACs, receptive fields and accuracies.

    Example: leanres models
    """
    from leanres.models.cost import summarize
    from leanres.models.zoo import MODELS
    from leanres.training.recipes import best_measured

    rows = [
        {
            "name": name,
            "params": costs.params,
            "macs": costs.macs,
            "receptive_field": costs.receptive_field,
            "chained_receptive_field": costs.chained_receptive_field,
            "reported": entry.reported,
            "measured": best_measured(name),
            "source": entry.source,
            "note": entry.note,
        }
        for name, entry in MODELS.items()
        for costs in [summarize(entry.config)]
    ]
    if as_json:
        say(json.dumps(rows, indent=1, default=asdict))
    else:
        _print_models(rows)


def _print_models(rows: list[dict[str, Any]]) -> None:
    cells = [
        [
            row["name"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:,.1f}",
            str(row["receptive_field"]),
            str(row["chained_receptive_field"]),
            *accuracies(row["reported"], row["measured"]),
            "; ".join(filter(None, (row["source"], row["note"]))),
        ]
        for row in rows
    ]
    heads = ["model", "params", "MMACs", "receptive field", "rf (chained)", "reported %"]
    print_table(
        [*heads, "measured %", "source"], cells, left=("source",), drop=("source", "rf (chained)")
    )
    say(
        "\naccuracies on CIFAR-10's test images: as the source reports it, and measured here"
        "\nleanres summary NAME lists one layer by layer"
    )


def accuracies(reported: float | None, measured: MeasuredResult | None) -> tuple[str, str]:
    """The cells of `reported %` and `measured %`: "91.25" and "93.23 (n=10)", empty for None."""
    return (
        "" if reported is None else f"{reported:.2f}",
        "" if measured is None else f"{measured.accuracy:.2f} (n={measured.n})",
    )


def summary(
    name: str = typer.Argument(
        metavar="NAME", help="A model of `leanres models`.", autocompletion=complete.MODEL
    ),
    budget: str = typer.Option("5M", help="Most parameters allowed, such as 5M or 300k."),
    size: int = typer.Option(32, min=1, max=4096, help="Side of the images in pixels."),
    channels: int = typer.Option(3, min=1, max=1024, help="Channels of the images."),
    as_json: bool = JSON,
) -> None:
    """Show a network layer by layer: shapes, parameters, MACs, receptive field, size.

    Example: leanres summary resnet20 --budget 300k
    """
    from leanres.models.cost import parse_count, summarize
    from leanres.models.zoo import MODELS, fitted

    most = parse_count(budget)
    entry = MODELS[name]
    config = fitted(entry.config, entry.config.num_classes, channels)
    costs = summarize(config, (channels, size, size))
    if as_json:
        within = {"name": name, "budget": most, "within_budget": costs.params <= most}
        say(json.dumps(within | costs.to_dict(), indent=1))
        return
    _print_summary(name, costs, most)
    say(f"source: {'; '.join(filter(None, (entry.source, entry.note)))}")


def _print_summary(name: str, costs: Summary, most: int) -> None:
    rows = [
        [
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            f"{row.params:,}" if row.params else "",
            f"{row.macs:,}" if row.macs else "",
            str(row.receptive_field),
            str(row.chained_receptive_field),
        ]
        for row in costs.rows
    ]
    heads = ["layer", "kind", "output", "params", "MACs", "receptive field", "rf (chained)"]
    print_table(heads, rows, left=("kind",), drop=("rf (chained)", "kind"))
    sizes = ", ".join(f"{mib:.2f} MiB {kind}" for kind, mib in costs.size_mib.items())
    verdict = "within" if costs.params <= most else "OVER"
    say(
        f"\n{name}: {costs.params:,} params ({verdict} the budget of {most:,}),"
        f" {costs.macs / 1e6:,.1f} MMACs\n{sizes}\n"
        f"receptive field {costs.receptive_field} px"
        f" ({costs.global_receptive_field} px after the global pool)\n"
        f"rf (chained) {costs.chained_receptive_field} px: all layers as one chain, as summary"
        " tools count it"
    )
