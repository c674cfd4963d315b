"""`leanres find-lr`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.console import check_picture, save_picture
from leanres.cli.options import (
    DEVICE,
    PATH,
    SIZE,
    STRICT,
    THREADS,
    changes,
    load_data_or_digits,
    make_device,
    to_argv,
)

if TYPE_CHECKING:
    from leanres.lr_finder.analysis import LRRange
    from leanres.training.recipe import Recipe


def find_lr(
    recipe: str = typer.Argument("speed", help="A recipe of `leanres recipes`, or a TOML file."),
    data: str = typer.Option("cifar10", help="As in train."),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    settings: list[str] = typer.Option([], "--set", help="Change a setting, as in train."),
    seed: int | None = typer.Option(None, help="Short for --set seed=N."),
    model: str | None = typer.Option(None, help="Short for --set model=NAME."),
    lr_min: float | None = typer.Option(None, help="Lowest lr to test; default: 1e-06."),
    lr_max: float | None = typer.Option(None, help="Highest lr to test; default: 10."),
    steps: int | None = typer.Option(
        None, help="Optimizer steps in between; default: 100 to 1,000, to see 25,000 images."
    ),
    mode: str | None = typer.Option(None, help="exponential (default) or linear."),
    device_name: str = DEVICE,
    threads: int = THREADS,
    out: Path | None = typer.Option(None, help="Draw the curve to this .png, .svg or .pdf."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Suggest a learning rate: train a copy while it rises, see where the loss falls."""
    from leanres.cli.console import console
    from leanres.lr_finder.analysis import LRSweep
    from leanres.lr_finder.finder import find_lr as test_range
    from leanres.training.recipe import from_dict
    from leanres.training.recipes import load_recipe

    given = {"lr_min": lr_min, "lr_max": lr_max, "steps": steps, "mode": mode}
    sweep: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    LRSweep(**sweep)  # a mistake shows before any work
    check_picture("--out", out)
    changed = changes(settings, seed=seed, model=model)
    chosen = from_dict(changed, load_recipe(recipe))
    device = make_device(device_name, chosen.precision, chosen.compiled, threads)
    dataset, fallen_back = load_data_or_digits(data, path, size, strict)
    if fallen_back and recipe == "speed":
        recipe, chosen = "digits", from_dict(changed, load_recipe("digits"))
    with console(stderr=True).status("testing learning rates"):
        result = test_range(chosen, dataset, device, **sweep)
    if out is not None:
        from leanres.lr_finder.plot import figure

        save_picture(figure(result), out)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    plain = {"data": data, "path": path, "size": size, "model": model, "seed": seed}
    arguments = [recipe, *_given(settings, **plain)]
    _print(result, out, _command(arguments, chosen, result))


def _given(settings: list[str], **options: Any) -> list[str]:
    """What the user gave and a training needs too, less the rates that the test has found."""
    rates = ("lr", "bias_lr", "head_lr")
    kept = [text for text in settings if text.partition("=")[0].strip() not in rates]
    return to_argv(kept, **options)


def _command(words: list[str], recipe: Recipe, result: LRRange) -> str:
    """`leanres train` with lr_max for its lr; every parameter group keeps its share of the lr."""
    found = result.settings(recipe)
    name, details = found.pop("schedule", ("", {}))
    rates = [word for key, lr in found.items() for word in ("--set", f"{key}={lr:.2g}")]
    if details:
        table = ", ".join(f"{key} = {_toml(value)}" for key, value in details.items())
        rates += ["--set", f'schedule=["{name}", {{{table}}}]']
    return shlex.join(["leanres", "train", *words, *rates])


def _toml(value: object) -> str:
    """A setting of a schedule as TOML writes it; numbers to two digits."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.2g}" if number else json.dumps(value)


def _print(result: LRRange, out: Path | None, command: str) -> None:
    from rich.table import Table

    from leanres.cli.console import console
    from leanres.lr_finder.analysis import WHAT
    from leanres.lr_finder.plot import ASCII, UNICODE, chart

    terminal = console()
    drawn = UNICODE if terminal.encoding.startswith("utf") else ASCII
    terminal.print(chart(result, glyphs=drawn))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("rule")
    table.add_column("lr", justify="right")
    table.add_column("why")
    for rule, lr in result.suggestions.items():
        names = [name for name, by in result.rules.items() if by == rule]
        reason = "; ".join(f"{name}: {result.reasons[name]}" for name in names)
        table.add_row(f"{rule[0].upper()}{rule[1:]}", f"{lr:.2g}", reason or WHAT[rule])
    terminal.print(table)
    terminal.print(result.stopped)
    if out is not None:
        terminal.print(f"picture: {out}")
    terminal.print(f"use it: {command}")
