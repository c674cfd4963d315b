"""`leanres search`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leanres.cli import options
from leanres.cli.console import print_table, say
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.trials.proposals import Bounds
    from leanres.trials.search import Candidate


def search(
    budget: str = typer.Option(
        "5M",
        help=f"Limits; each network uses 99 to 100 % of the parameters. {options.BUDGET_HELP}",
        rich_help_panel="Search",
    ),
    multiple: int = typer.Option(8, min=1, help="Channels are multiples of this."),
    trials: int = typer.Option(20, min=1, help="Networks to try, including those stopped early."),
    seed: int = typer.Option(0, min=0, help="Seed of the proposals."),
    settings: list[str] = options.SETTINGS,
    recipe: str = typer.Option("plain-sgd", help="The recipe that trains each network."),
    epochs: int = typer.Option(9, min=1, help="Epochs of a network that is not stopped early."),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    at_once: int = options.AT_ONCE,
    devices: str = options.DEVICES,
    threads: int = options.THREADS_EACH,
    executor: options.Executors = options.EXECUTOR,
    address: str = options.ADDRESS,
    as_json: bool = options.JSON,
    out: Path = typer.Option(Path("runs/search"), help="Output folder."),
) -> None:
    """Find a residual network under a budget: exact counts, successive halving on val.

    Optuna proposes depths, blocks and growth; widths follow from the budget. The same command
    continues a search, and shares the work where another process searches in the same folder.

    Example: leanres search --budget 300k --set val=0.1 --trials 10
    """
    from leanres.data.sources import locate
    from leanres.models.budget import parse_budget
    from leanres.training.recipes import RECIPES, load_recipe
    from leanres.trials import search as library
    from leanres.trials.executors import local_executor
    from leanres.trials.proposals import Bounds

    bounds = Bounds(parse_budget(budget), multiple)
    whole = load_recipe(recipe, options.changes(settings))
    short = replace(whole, epochs=epochs)
    ray = options.make_ray(executor, address, out, devices, at_once, threads)
    dataset = options.load_dataset(data, size, strict, channels)

    def watch(c: Candidate) -> None:
        ended = "" if c.finished else f", stopped after epoch {c.epochs}"
        say(f"{c.name}: {c.params:,} params, val {100 * c.accuracy:.2f} %{ended}", err=True)

    where = ray or local_executor(dataset, short, devices.split(","), at_once, threads)
    origin = {"command": options.current_command()} | locate(data, size=size, channels=channels)
    found = library.search(bounds, short, dataset, where, out, trials, seed, origin, watch)
    if not found[0].finished:
        raise UserError("every network diverged: give a lower --set lr, and another --out")
    base = recipe if recipe in RECIPES else "speed"
    best = library.write_best(out, found[0], whole, base)
    if as_json:
        say(json.dumps([asdict(c) for c in found]))
        return
    _print(found, bounds)
    words = [str(best), "--data", data, *(["--size", str(size)] if size else [])]
    words += ["--channels", str(channels)] if channels else []
    say(
        "Pareto: no other is both better on val and cheaper in MACs. Train the best one for the"
        f" recipe's own epochs:\n{shlex.join(['leanres', 'train', *words])}"
    )


def _print(found: list[Candidate], bounds: Bounds) -> None:
    from leanres.trials.search import pareto_front

    front = pareto_front(found)
    heads = ["network", "val %", "epochs", "params", "of budget", "MMACs", "receptive field", ""]
    rows = [
        [
            c.name,
            f"{100 * c.accuracy:.2f}",
            str(c.epochs),
            f"{c.params:,}",
            f"{100 * c.params / bounds.params:.1f} %",
            f"{c.macs / 1e6:,.0f}",
            str(c.receptive_field),
            "Pareto" if c in front else "" if c.finished else "stopped",
        ]
        for c in found
    ]
    print_table(heads, rows, left=("",), drop=("of budget", "epochs", "receptive field"))
