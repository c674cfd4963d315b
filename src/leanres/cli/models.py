"""`leanres models`, `leanres summary`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import complete
from leanres.cli.console import print_table, say
from leanres.cli.options import BUDGET_HELP, JSON

if TYPE_CHECKING:
    from leanres.models.budget import Budget
    from leanres.models.cost import Summary
    from leanres.training.recipes import MeasuredResult

CHAINED = "chained receptive field"


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
            count_or_dash(row["receptive_field"]),
            count_or_dash(row["chained_receptive_field"]),
            *accuracies(row["reported"], row["measured"]),
            "; ".join(filter(None, (row["source"], row["note"]))),
        ]
        for row in rows
    ]
    heads = ["model", "params", "MMACs", "receptive field", CHAINED, "reported %"]
    print_table([*heads, "measured %", "source"], cells, left=("source",), drop=("source", CHAINED))
    say(
        "\naccuracies on CIFAR-10's test images: as the source reports it, and measured here"
        "\nleanres summary NAME lists one layer by layer"
    )


def count_or_dash(value: int | None) -> str:
    """A number; "-" where it is unknown."""
    return "-" if value is None else str(value)


def accuracies(reported: float | None, measured: MeasuredResult | None) -> tuple[str, str]:
    """The cells of `reported %` and `measured %`: "91.25" and "93.23 (n=10)", empty for None."""
    return (
        "" if reported is None else f"{reported:.2f}",
        "" if measured is None else f"{measured.accuracy:.2f} (n={measured.n})",
    )


def summary(
    target: str = typer.Argument(
        metavar="NETWORK",
        help="A model of `leanres models` or of a plugin (mine:Net), a run folder, a weights file,"
        " a recipe's TOML file, or {family = ..., ...}.",
        autocompletion=complete.MODEL,
    ),
    budget: str = typer.Option("5M", help=BUDGET_HELP),
    size: int | None = typer.Option(
        None, min=1, max=4096, help="Side of the images in pixels. Default: the run's own, or 32."
    ),
    channels: int | None = typer.Option(
        None, min=1, max=1024, help="Channels of the images. Default: the run's own, or 3."
    ),
    as_json: bool = JSON,
) -> None:
    """Show a network layer by layer: shapes, parameters, MACs, receptive field, memory, size.

    Example: leanres summary resnet20 --budget params=300k,memory=256K
    """
    from leanres.models.budget import parse_budget
    from leanres.models.cost import summarize
    from leanres.models.zoo import fitted
    from leanres.runs.network import find_network

    limits = parse_budget(budget)
    found = find_network(target)
    config = fitted(found.config, found.config.num_classes, channels or found.config.in_channels)
    side = size or found.size or 32
    costs = summarize(config, (config.in_channels, side, side))
    if as_json:
        terms = [verdict._asdict() for verdict in limits.verdicts(costs)]
        within = {"name": found.name, "budget": terms, "within_budget": limits.admits(costs)}
        say(json.dumps(within | costs.to_dict(), indent=1))
        return
    _print_summary(found.name, costs, limits)
    say(f"source: {found.source}")


def _print_summary(name: str, costs: Summary, budget: Budget) -> None:
    rows = [
        [
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            f"{row.params:,}" if row.params else "",
            f"{row.macs:,}" if row.macs else "",
            count_or_dash(row.receptive_field),
            count_or_dash(row.chained_receptive_field),
        ]
        for row in costs.rows
    ]
    heads = ["layer", "kind", "output", "params", "MACs", "receptive field", CHAINED]
    print_table(heads, rows, left=("kind",), drop=(CHAINED, "kind"))
    sizes = ", ".join(f"{mib:.2f} MiB {kind}" for kind, mib in costs.size_mib.items())
    memory = ", ".join(f"{held / 1024:,.1f} KiB {kind}" for kind, held in costs.memory.items())
    say(
        f"\n{name}: {costs.params:,} params, {costs.macs / 1e6:,.1f} MMACs\n"
        f"weights: {sizes}\n"
        f"activations of one image, at their most: {memory}"
    )
    if costs.unknown:
        say(f"receptive field: unknown, {costs.unknown}")
    else:
        say(
            f"receptive field {costs.receptive_field} px"
            f" ({costs.global_receptive_field} px after the global pool)\n"
            f"{CHAINED} {costs.chained_receptive_field} px: layers as one chain, as summary tools"
            " count it"
        )
    fits = "within" if budget.admits(costs) else "NOT within"
    say(f"{fits} the budget: {'; '.join(map(str, budget.verdicts(costs)))}")
