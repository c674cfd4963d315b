"""`leanres find-lr`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import options
from leanres.cli.console import check_picture, console, print_table, save_picture, say
from leanres.runs.command import without_options

if TYPE_CHECKING:
    from leanres.lr_finder.analysis import LRRange
    from leanres.training.recipe import Recipe

# Options that `train` lacks, or that are written anew -> whether they take a value.
OWN_OPTIONS = {"--json": False} | dict.fromkeys(
    ("--lr-min", "--lr-max", "--steps", "--mode", "--out", "--set"), True
)


def find_lr(
    recipe: str = options.RECIPE,
    settings: list[str] = options.SETTINGS,
    seed: int | None = options.SEED,
    model: str | None = options.MODEL,
    data: str = options.DATA_OR_AUTO,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    lr_min: float | None = options.measurement_option(
        None, help="Lowest learning rate to test; default: 1e-06."
    ),
    lr_max: float | None = typer.Option(None, help="Highest learning rate to test; default: 10."),
    steps: int | None = typer.Option(
        None, help="Optimizer steps in between; default: 100 to 1,000, to see 25,000 images."
    ),
    mode: str | None = typer.Option(
        None, help="How the learning rate rises: exponential (default) or linear."
    ),
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    out: Path | None = options.output_option(
        None, help="Draw the curve into this .png, .svg or .pdf file."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Suggest a learning rate: raise it while a copy of the network trains, and watch the loss.

    Example: leanres find-lr digits --data digits
    """
    from leanres.lr_finder.analysis import LRSweep
    from leanres.lr_finder.finder import find_lr as run_range_test
    from leanres.training.recipes import load_recipe

    given = {"lr_min": lr_min, "lr_max": lr_max, "steps": steps, "mode": mode}
    sweep: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    LRSweep(**sweep)  # refuses a mistake before any work
    check_picture("--out", out)
    changed = options.changes(settings, seed=seed, model=model)
    chosen = load_recipe(recipe, changed)
    device = options.make_device(device_name, chosen, threads)
    dataset, _, recipe = options.load_data_or_digits(data, size, strict, channels, recipe)
    chosen = load_recipe(recipe, changed)
    with console(stderr=True).status("testing learning rates"):
        result = run_range_test(chosen, dataset, device, **sweep)
    if out is not None:
        from leanres.lr_finder.plot import figure

        save_picture(figure(result), out)
    if as_json:
        say(json.dumps(result.to_dict()))
        return
    _print_range(result, out)
    say(f"train with it: {train_command(sys.argv[2:], settings, result, chosen)}")


def train_command(
    words: Sequence[str], settings: Sequence[str], result: LRRange, recipe: Recipe
) -> str:
    """`find-lr WORDS` as a `leanres train` command with the learning rates that were found.

    `settings` are those that WORDS change.

    The main group gets lr_max, the other parameter groups keep their share of it; a one-cycle
    schedule gets lr_min too.
    """
    found = result.settings(recipe)
    kept = [text for text in settings if text.partition("=")[0].strip() not in found]
    kept += [f"{key}={_toml(value)}" for key, value in found.items()]
    changed = [word for text in kept for word in ("--set", text)]
    return shlex.join(["leanres", "train", *without_options(words, OWN_OPTIONS), *changed])


def _toml(value: Any) -> str:
    """A learning rate, or a one-cycle schedule with its lr_min, rounded to two digits."""
    if isinstance(value, float):
        return f"{value:.2g}"
    from leanres.io import toml_value  # filelock would double the time of --help

    name, details = value
    return toml_value([name, {**details, "lr_min": float(f"{details['lr_min']:.2g}")}])


def _print_range(result: LRRange, picture: Path | None) -> None:
    from leanres.lr_finder.analysis import RULES
    from leanres.lr_finder.plot import ASCII, chart

    terminal, drawn = console(), chart(result)
    if not terminal.encoding.startswith("utf"):
        drawn.plain = drawn.plain.translate(ASCII)
    terminal.print(drawn)
    rows = []
    for rule, lr in result.suggestions.items():
        names = [name for name, by in result.rules.items() if by == rule]
        reason = "; ".join(f"{name}: {result.reasons[name]}" for name in names)
        rows.append([rule.capitalize(), f"{lr:.2g}", reason or RULES[rule].description])
    print_table(["rule", "lr", "why"], rows, left=("why",))
    say(result.stopped)
    if picture is not None:
        say(f"picture: {picture}")
