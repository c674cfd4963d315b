"""`leanres recipes`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer


def recipes(
    name: str = typer.Argument("", help="Print this one as a TOML file, every setting explained."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the training recipes; one of them in full, as a file to change and train with."""
    from leanres.models.zoo import MODELS
    from leanres.training.recipes import PROVENANCE, RECIPES, cost, load_recipe, to_toml

    if name:
        recipe = load_recipe(name)
        typer.echo(json.dumps({"name": name, **recipe.to_dict()}) if as_json else to_toml(recipe))
        return
    if as_json:
        for known, recipe in RECIPES.items():
            reported = MODELS[str(recipe.model)].reported
            about = {**asdict(PROVENANCE[known]), "reported": reported, "flop": cost(recipe)}
            typer.echo(json.dumps({"name": known, **recipe.to_dict(), **about}))
        return
    _print_recipes()


def _print_recipes() -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.models.zoo import MODELS
    from leanres.training.recipes import PROVENANCE, RECIPES, cost

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("network", no_wrap=True)
    for title in ("epochs", "batch"):
        table.add_column(title, justify="right")
    table.add_column("optimizer", no_wrap=True)
    for title in ("PFLOP", "reported %", "own %"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    for name, r in RECIPES.items():
        about, network = PROVENANCE[name], str(r.model)
        optimizer = f"{r.optimizer} {r.lr:g}, {r.schedule[0]}"
        reported = MODELS[network].reported
        table.add_row(
            name,
            network,
            *(f"{r.epochs}", f"{r.batch_size:,}", optimizer, f"{cost(r) / 1e15:.3g}"),
            "" if reported is None else f"{reported:.2f}",
            "" if about.measured is None else f"{about.measured.accuracy:.2f} (n={about.measured.n})",
            about.source,
        )
    console().print(table)
    typer.echo(
        "\nPFLOP: arithmetic of a training on 50,000 images; at 1 TFLOP/s each takes 1,000 s"
        "\nleanres recipes NAME prints one in full; leanres train NAME trains with it"
    )
