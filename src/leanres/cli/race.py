"""`leanres bench race`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from leanres.cli import options
from leanres.cli.console import say
from leanres.errors import UserError


def race(
    recipe: str = options.RECIPE,
    settings: list[str] = options.SETTINGS,
    target: float = typer.Option(94.0, min=0, max=100, help="Accuracy in percent, with TTA."),
    n: int = typer.Option(5, min=1, help="Number of seeds, from --seed on."),
    seed: int = typer.Option(0, min=0, help="The first seed."),
    warm: bool = typer.Option(
        False,
        "--warm",
        help="Time the training alone, in one warmed-up process, as published records do.",
    ),
    data: str = options.DATA,
    size: int | None = options.SIZE,
    channels: int | None = options.CHANNELS,
    strict: bool = options.STRICT,
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    executor: options.Executors = options.EXECUTOR,
    address: str = options.ADDRESS,
    as_json: bool = options.JSON,
    runs: Path = typer.Option(Path("runs"), help="Folder of the run folders."),
    out: Path | None = typer.Option(
        None,
        help="The ledger entry; its seeds are not run again. Default: results/race-RECIPE.json.",
    ),
) -> None:
    """Measure the time to a target accuracy over n seeds, each from process start to accuracy.

    Example: leanres bench race speed --n 3 --target 94
    """
    from leanres.data.sources import locate
    from leanres.training.recipes import load_recipe
    from leanres.trials import race as library
    from leanres.trials.executors import LocalProcesses
    from leanres.trials.jobs import Job

    chosen = load_recipe(recipe, options.changes(settings))
    if warm and executor == "ray":
        raise UserError("--warm times this process: leave out --executor ray")
    ray = options.make_ray(executor, address, runs, device_name, 1, threads, exclusive=True)
    device = None if ray else options.make_device(device_name, chosen, threads)
    entry = out or Path("results", f"race-{Path(recipe).stem}{'-warm' * warm}.json")
    command = {"command": options.current_command()}

    def cold_runs(seeds: list[int]) -> Iterator[dict[str, Any]]:
        where = ray or LocalProcesses(1, [device_name], threads)
        origin = command | locate(data, size=size, channels=channels)
        for number in seeds:
            job = Job(replace(chosen, seed=number), runs / f"{entry.stem}-{number}", origin)
            yield library.cold_run(job, where, device)

    train = cold_runs
    if warm and device:
        dataset = options.load_dataset(data, size, strict, channels)
        train = partial(library.warm_runs, chosen, dataset=dataset, device=device)
    counted = "warm: training alone" if warm else "cold: the whole process"
    header = command | {"counted": counted, "recipe": chosen.to_dict()}
    for summary in library.race(train, range(seed, seed + n), target / 100, entry, header):
        say(_line(summary), err=as_json)
    say(json.dumps(summary) if as_json else f"{entry} holds every run")


def _line(summary: dict[str, Any]) -> str:
    """The results of the runs so far, in one line."""

    def spread(key: str, scale: float, digits: int) -> str:
        mean, sd = summary[key]["mean"], summary[key]["sd"]
        tail = "" if sd is None else f" ± {scale * sd:.{digits}f}"
        return f"{scale * mean:.{digits}f}{tail}"

    wall = f", wall clock {spread('wall_seconds', 1, 1)} s" if "wall_seconds" in summary else ""
    return (
        f"n = {summary['n']}: {spread('accuracy_tta', 100, 2)} % with augmentation"
        f" ({spread('accuracy', 100, 2)} % without), trained in"
        f" {spread('train_seconds', 1, 1)} s{wall}, {100 * summary['reached']:.0f} % of seeds at"
        f" {100 * summary['target']:g} % or more"
    )
