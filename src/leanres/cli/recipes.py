"""`leanres recipes`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from leanres.cli import complete
from leanres.cli.console import print_table, say
from leanres.cli.models import accuracies
from leanres.cli.options import JSON, output_option

# Where an editor (by taplo) looks for the schema, and how it comes there.
SCHEMA_LINE = """#:schema ./recipe.schema.json
# for editors that check TOML: leanres recipes --schema > recipe.schema.json"""


def recipes(
    name: str = typer.Argument(
        "",
        metavar="NAME",
        help="Print this one as a TOML file, every setting explained.",
        autocompletion=complete.RECIPE,
    ),
    as_schema: bool = output_option(
        False, "--schema", help="Print the JSON Schema by which editors check and complete recipes."
    ),
    as_json: bool = JSON,
) -> None:
    """List the training recipes, or print one as a file to change and train with.

    Example: leanres recipes digits > mine.toml
    """
    from leanres.training.recipes import NAMED_RECIPES, cost, load_recipe, to_toml
    from leanres.training.schema import recipe_schema

    if as_schema:
        say(json.dumps(recipe_schema(), indent=1))
    elif name:
        recipe = load_recipe(name)
        if as_json:
            say(json.dumps({"name": name, **recipe.to_dict()}))
        else:
            say(f"{SCHEMA_LINE}\n\n{to_toml(recipe)}")
    elif as_json:
        for known, entry in NAMED_RECIPES.items():
            about = asdict(entry) | {"reported": entry.reported, "flop": cost(entry.recipe)}
            del about["recipe"]
            say(json.dumps({"name": known, **entry.recipe.to_dict(), **about}))
    else:
        _print_recipes()


def _print_recipes() -> None:
    from leanres.training.recipes import NAMED_RECIPES, cost

    heads = ["recipe", "network", "epochs", "batch", "optimizer", "PFLOP"]
    rows = []
    for name, entry in NAMED_RECIPES.items():
        recipe, (reported, measured) = entry.recipe, accuracies(entry.reported, entry.measured)
        rows.append(
            [
                name,
                str(recipe.model),
                str(recipe.epochs),
                f"{recipe.batch_size:,}",
                f"{recipe.optimizer} {recipe.lr:g}, {recipe.schedule[0]}",
                f"{cost(recipe) / 1e15:.3g}",
                reported,
                measured + "*" * bool(entry.measured and entry.measured.changed),
                entry.source,
            ]
        )
    print_table(
        [*heads, "reported %", "measured %", "source"],
        rows,
        left=("network", "optimizer", "source"),
        drop=("source", "reported %", "optimizer", "batch"),
    )
    changed = [(n, e.measured.changed) for n, e in NAMED_RECIPES.items() if e.measured]
    for name, settings in changed:
        if settings:
            say(f"* {name} was measured with another {', '.join(settings)}: docs/systems.md")
    say(
        "\nPFLOP: 10^15 floating-point operations of a training on 50,000 images;"
        "\nat 1 TFLOP/s each takes 1,000 s"
        "\nleanres recipes NAME prints one in full; leanres train NAME trains with it"
    )
