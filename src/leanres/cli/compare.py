"""`leanres compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli.options import (
    DEVICE,
    PATH,
    SIZE,
    STRICT,
    THREADS,
    check_measure,
    current_command,
    load_dataset,
    make_device,
)

if TYPE_CHECKING:
    from leanres.trials.compare import Comparison, Outcome


def compare(
    name: str = typer.Argument(help="optimizers, schedules, augmentations, depths or elements."),
    seeds: str = typer.Option("0,1,2", help="Seeds that each variant is trained with."),
    epochs: int | None = typer.Option(None, min=1, help="Short for --set epochs=N."),
    settings: list[str] = typer.Option([], "--set", help="A setting for all variants."),
    data: str = typer.Option("cifar10", help="cifar10, digits, or a folder with one per class."),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    out: Path | None = typer.Option(None, help="Folder of the runs; default: runs/compare-NAME."),
    measure: str = typer.Option("val", help="What to measure on: val, or test to report."),
    device_name: str = DEVICE,
    threads: int = THREADS,
    as_json: bool = typer.Option(False, "--json", help="Print JSON; progress goes to stderr."),
) -> None:
    """Train variants of one recipe with the same seeds: a table of paired differences.

    Runs that are finished already are kept, so an interrupted comparison goes on.
    """
    from leanres.training.recipe import parse_setting
    from leanres.trials import compare as library

    check_measure(measure)
    comparison = library.COMPARISONS[name]
    changes = dict(map(parse_setting, settings)) | ({} if epochs is None else {"epochs": epochs})
    numbers = _numbers(seeds)
    chosen = library.recipes(comparison, changes)
    first = next(iter(chosen.values()))
    device = make_device(device_name, first.precision, first.compiled, threads)
    dataset = load_dataset(data, path, size, strict)
    folder = out or Path("runs", f"{library.PREFIX}{name}")

    def watch(place: Path, variant: str, seed: int, done: bool) -> None:
        typer.echo(f"{variant}, seed {seed} {'is in' if done else '->'} {place}", err=True)

    outcomes = library.compare(
        comparison, dataset, device, folder, numbers, changes, measure, watch
    )
    rows = list(library.to_rows(outcomes))
    if as_json:
        facts = {"comparison": name, "command": current_command(), "measured_on": measure}
        typer.echo(json.dumps(facts | {"question": comparison.question, "rows": rows}, indent=1))
        return
    _print(comparison, outcomes, rows, measure)


def _numbers(seeds: str) -> list[int]:
    from leanres.errors import UserError

    try:
        return [int(word) for word in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds}: give whole numbers with commas, as in 0,1,2") from None


def _print(
    comparison: Comparison, outcomes: list[Outcome], rows: list[dict[str, Any]], measure: str
) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for title in ("n", f"{measure} accuracy %", "sd", "difference, 95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("reported %", justify="right")
    for o, row in zip(outcomes, rows, strict=True):
        d = row.get("difference")
        table.add_row(
            o.variant,
            str(len(o.accuracies)),
            f"{100 * o.mean:.2f}",
            "" if o.sd is None else f"{100 * o.sd:.2f}",
            "" if d is None else _interval(d),
            "the yardstick" if d is None else d["verdict"],
            "" if o.reported is None else f"{o.reported:.2f}",
        )
    out = console()
    out.print(comparison.question)
    out.print(table)


def _interval(d: dict[str, Any]) -> str:
    spread = "" if d["half_width"] is None else f" ± {100 * d['half_width']:.2f}"
    return f"{100 * d['mean']:+.2f}{spread}"
