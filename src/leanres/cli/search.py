"""`leanres search`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli.options import (
    DEVICE,
    PATH,
    SIZE,
    STRICT,
    THREADS,
    changes,
    load_dataset,
    make_device,
    to_argv,
)

if TYPE_CHECKING:
    from leanres.trials.search import Bounds, Candidate


def search(
    budget: str = typer.Option("5M", help="Parameters: each network uses 99 to 100 % of it."),
    max_macs: str = typer.Option("", help="Most MACs for one image, such as 1.2G."),
    field: str = typer.Option("", help="Receptive field in pixels, least and most: 16,64."),
    multiple: int = typer.Option(8, min=1, help="Channels are multiples of this."),
    trials: int = typer.Option(20, min=1, help="Networks to train, those stopped early included."),
    recipe: str = typer.Option("plain-sgd", help="How each is trained."),
    settings: list[str] = typer.Option([], "--set", help="Change a setting, as in train."),
    epochs: int = typer.Option(9, min=1, help="Epochs of a network that is not stopped."),
    seed: int = typer.Option(0, min=0, help="Of the proposals."),
    data: str = typer.Option("cifar10", help="cifar10, digits, or a folder with one per class."),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    out: Path = typer.Option(Path("runs/search"), help="Folder of the search; it goes on there."),
    device_name: str = DEVICE,
    threads: int = THREADS,
    as_json: bool = typer.Option(False, "--json", help="Print JSON; progress goes to stderr."),
) -> None:
    """Find a residual network under a budget: exact counts, successive halving on val.

    Optuna proposes depths, blocks and growth; widths follow from the budget. Stopped or killed,
    the same command goes on.
    """
    from leanres.models.cost import parse_count
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe
    from leanres.trials import search as library

    bounds = library.Bounds(
        parse_count(budget),
        parse_count(max_macs) if max_macs else None,
        _field(field) if field else library.Bounds.receptive_field,
        multiple,
    )
    chosen = from_dict(changes(settings, epochs=epochs), load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    dataset = load_dataset(data, path, size, strict)

    def watch(c: Candidate) -> None:
        ended = "" if c.finished else f", stopped after epoch {c.epochs}"
        typer.echo(f"{c.name}: {c.params:,} params, val {100 * c.accuracy:.2f} %{ended}", err=True)

    found = library.search(bounds, chosen, dataset, device, out, trials, seed, watch)
    if as_json:
        typer.echo(json.dumps([asdict(c) for c in found]))
    else:
        plain = {"data": data, "path": path, "size": size, "strict": strict}
        _print(found, bounds, out, [recipe, *to_argv(settings, **plain)])


def _field(text: str) -> tuple[int, int]:
    from leanres.errors import UserError

    try:
        least, most = (int(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--field {text}: give least and most in pixels, as in 16,64") from None
    return least, most


def _print(found: list[Candidate], bounds: Bounds, out: Path, arguments: list[str]) -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.trials.search import pareto_front

    front = pareto_front(found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("network", no_wrap=True)
    for title in ("val %", "epochs", "params", "of budget", "MMACs", "field"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for c in found:
        table.add_row(
            c.name,
            f"{100 * c.accuracy:.2f}",
            str(c.epochs),
            f"{c.params:,}",
            f"{100 * c.params / bounds.params:.1f} %",
            f"{c.macs / 1e6:,.0f}",
            str(c.receptive_field),
            "Pareto" if c in front else "" if c.finished else "stopped",
        )
    console().print(table)
    best = found[0]
    command = shlex.join(["leanres", "train", *arguments, "--set", f"model={_toml(best)}"])
    typer.echo(
        "Pareto: no other is both better on val and cheaper in MACs. Train the best one for the"
        f" recipe's own epochs:\n{command}  # its short run: {out / best.name}"
    )


def _toml(c: Candidate) -> str:
    model = c.model
    return (
        f'{{family="resnet", block="{model["block"]}", widths={list(model["widths"])},'
        f" depths={list(model['depths'])}}}"
    )
