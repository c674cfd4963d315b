"""`leanres compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from leanres.cli.options import (
    AT_ONCE,
    DATA,
    DEVICES,
    EPOCHS,
    JSON,
    MEASUREMENT,
    OUTPUT,
    PATH,
    SETTINGS,
    SIZE,
    STRICT,
    THREADS_EACH,
    TRAINING,
    changes,
    check_measure,
    current_command,
    load_dataset,
    numbers,
)


def compare(
    name: str = typer.Argument(help="optimizers, schedules, augmentations, depths or elements."),
    settings: list[str] = SETTINGS,
    epochs: int | None = EPOCHS,
    seeds: str = typer.Option(
        "0,1,2", help="Seeds to train each variant with.", rich_help_panel=TRAINING
    ),
    data: str = DATA,
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    measure: str = typer.Option(
        "val",
        metavar="SPLIT",
        help="The split to measure at the end: val, or test for a report.",
        rich_help_panel=MEASUREMENT,
    ),
    at_once: int = AT_ONCE,
    devices: str = DEVICES,
    threads: int = THREADS_EACH,
    out: Path | None = typer.Option(
        None, help="Folder of the runs. Default: runs/compare-NAME.", rich_help_panel=OUTPUT
    ),
    as_json: bool = JSON,
) -> None:
    """Train variants of one recipe with the same seeds and print their paired differences.

    Finished runs are kept, so the same command continues an interrupted comparison.

    Example: leanres compare optimizers --epochs 2 --seeds 0,1 --at-once 2
    """
    from leanres.data.sources import locate
    from leanres.trials import compare as library
    from leanres.trials.executors import local_executor

    check_measure(measure)
    comparison = library.COMPARISONS[name]
    changed, seed_list = changes(settings, epochs=epochs), numbers("--seeds", seeds)
    first = next(iter(library.recipes(comparison, changed).values()))
    dataset = load_dataset(data, path, size, strict)
    command = current_command()

    def watch(place: Path, variant: str, seed: int, done: bool) -> None:
        typer.echo(f"{variant}, seed {seed} {'is in' if done else '->'} {place}", err=True)

    rows = library.compare(
        comparison,
        dataset,
        local_executor(dataset, first, devices.split(","), at_once, threads),
        out or Path("runs", f"{library.PREFIX}{name}"),
        seed_list,
        changed,
        measure=measure,
        origin={"command": command} | locate(data, path, size),
        watch=watch,
    )
    if as_json:
        facts = {"comparison": name, "command": command, "measured_on": measure}
        typer.echo(json.dumps(facts | {"question": comparison.question, "rows": rows}, indent=1))
    else:
        typer.echo(comparison.question)
        print_rows(rows, "variant", measure)


def print_rows(rows: list[dict[str, Any]], kind: str, measure: str) -> None:
    """A table of `trials.compare.to_rows`: means, and differences from the first row."""
    from leanres.cli.console import print_table

    heads = [kind, "n", f"{measure} %", "sd", "difference, 95 %", "verdict"]
    reported = [f"{row['reported']:.2f}" if row["reported"] else "" for row in rows]
    cells = [
        [
            row["variant"],
            str(len(row["accuracies"])),
            f"{100 * row['mean']:.2f}",
            "" if row["sd"] is None else f"{100 * row['sd']:.2f}",
            *(_difference(row["difference"]) if "difference" in row else ("", "")),
        ]
        for row in rows
    ]
    cells[0][-1] = "the baseline"
    if any(reported):
        heads.append("reported %")
        cells = [[*line, cell] for line, cell in zip(cells, reported, strict=True)]
    print_table(heads, cells, left=("verdict",), drop=("reported %", "sd"))


def _difference(d: dict[str, Any]) -> tuple[str, str]:
    spread = "" if d["half_width"] is None else f" ± {100 * d['half_width']:.2f}"
    return f"{100 * d['mean']:+.2f}{spread}", d["verdict"]
