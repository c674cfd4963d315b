"""`leanres compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import complete, options
from leanres.cli.console import print_table, say
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.trials.jobs import Event


def compare(
    name: str = typer.Argument(
        help="optimizers, schedules, augmentations, depths or elements.",
        autocompletion=complete.COMPARISON,
    ),
    settings: list[str] = options.SETTINGS,
    epochs: int | None = options.EPOCHS,
    seeds: str = typer.Option("0,1,2", help="Comma-separated seeds to train each variant with."),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    measure: options.Measure = options.measurement_option(
        "val", help="The split to measure at the end: val, or test for a report."
    ),
    at_once: int = options.AT_ONCE,
    devices: str = options.DEVICES,
    threads: int = options.THREADS_EACH,
    executor: options.Executors = options.EXECUTOR,
    address: str = options.ADDRESS,
    as_json: bool = options.JSON,
    out: Path | None = typer.Option(None, help="Folder of the runs. Default: runs/compare-NAME."),
) -> None:
    """Train variants of one recipe with the same seeds and print their paired differences.

    Finished runs are kept, so the same command continues an interrupted comparison.

    Example: leanres compare optimizers --epochs 2 --seeds 0,1 --at-once 2
    """
    from leanres.data.sources import locate
    from leanres.trials import compare as library
    from leanres.trials.executors import local_executor

    comparison, command = library.COMPARISONS[name], options.current_command()
    changed, numbers = options.changes(settings, epochs=epochs), parse_seeds(seeds)
    first = next(iter(library.recipes(comparison, changed).values()))
    folder = out or Path("runs", f"{library.PREFIX}{name}")
    ray = options.make_ray(executor, address, folder, devices, at_once, threads)
    dataset = options.load_dataset(data, size, strict, channels)

    def watch(event: Event) -> None:
        say(options.event_line(event), err=True)

    rows = library.compare(
        comparison,
        dataset,
        ray or local_executor(dataset, first, devices.split(","), at_once, threads),
        folder,
        numbers,
        changed,
        measure=measure,
        origin={"command": command} | locate(data, size=size, channels=channels),
        watch=watch,
    )
    if as_json:
        facts = {"comparison": name, "command": command, "measured_on": measure}
        say(json.dumps(facts | {"question": comparison.question, "rows": rows}, indent=1))
    else:
        say(comparison.question)
        print_rows(rows, "variant", measure)


def parse_seeds(text: str) -> list[int]:
    """Different comma-separated integers: "0,1,2" -> [0, 1, 2]. UserError for anything else."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds {text}: give different whole numbers, such as 0,1,2")
    return found


def print_rows(rows: list[dict[str, Any]], kind: str, measure: str) -> None:
    """A table of `trials.compare.to_rows`: means, and differences from the first row."""

    def cells(row: dict[str, Any]) -> list[str]:
        d, sd = row.get("difference"), row["sd"]
        spread = f" ± {100 * d['half_width']:.2f}" if d and d["half_width"] is not None else ""
        return [
            row["variant"],
            str(len(row["accuracies"])),
            f"{100 * row['mean']:.2f}",
            "" if sd is None else f"{100 * sd:.2f}",
            f"{100 * d['mean']:+.2f}{spread}" if d else "",
            d["verdict"] if d else "the baseline" if row is rows[0] else "",
            f"{row['reported']:.2f}" if row["reported"] else "",
        ]

    heads = [kind, "n", f"{measure} %", "sd", "difference, 95 %", "verdict", "reported %"]
    width = len(heads) - (not any(row["reported"] for row in rows))
    table = [cells(row)[:width] for row in rows]
    print_table(heads[:width], table, left=("verdict",), drop=("reported %", "sd"))
