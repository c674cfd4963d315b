"""`leanres data`, and how every command finds its images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from leanres.data.describe import Description
    from leanres.data.split import Dataset

PATH = typer.Option(
    None, "--path", help="Where the data lies; else $LEANRES_DATA, cache, download."
)
SIZE = typer.Option(32, "--size", help="Side in pixels that a folder's images are resized to.")
STRICT = typer.Option(False, "--strict", help="Stop at the first image that cannot be read.")


def load(
    name: str, path: Path | None, size: int = 32, strict: bool = False, download: bool = True
) -> Dataset:
    """The data set, with a progress bar for a download and its notes on stderr."""
    from leanres.data import sources

    with _progress() as progress:
        dataset = sources.load(
            name, path, size=size, strict=strict, download=download, progress=progress
        )
    for note in dataset.notes:
        typer.echo(f"note: {note}", err=True)
    return dataset


def origin(name: str, path: Path | None, size: int) -> dict[str, Any]:
    """What run.json keeps of the data's whereabouts, so that any working folder will do."""
    from leanres.data.sources import SOURCES

    if name not in SOURCES and path is None:
        name, path = "folder", Path(name)
    where = None if path is None else str(path.expanduser().resolve())
    return {"data": name, "path": where, "size": size}


def reload(
    info: dict[str, Any],
    name: str | None = None,
    path: Path | None = None,
    download: bool = True,
) -> Dataset:
    """The data that run.json's content names, or what is given in its place."""
    known = info.get("origin") or {}
    size = known.get("size", info["preprocess"]["size"])
    if name is None:
        name = known.get("data", info["data"]["name"])
        kept = known.get("path") or (info["data"]["source"] if name == "folder" else None)
        path = path or (Path(kept) if kept else None)
    return load(name, path, size, download=download)


@contextmanager
def _progress() -> Iterator[Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from leanres.cli.console import console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    out = console(stderr=True)
    # Not drawn where nobody watches: even an empty bar leaves a blank line in a log.
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def hear(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, None)
            if task is None:
                task = tasks[what] = bar.add_task(what, total=total or None)
            bar.update(task, completed=done, total=total or None)

        yield hear


def data(
    name: str = typer.Argument("cifar10", help="cifar10, digits, or a folder with one per class."),
    path: Path | None = PATH,
    size: int = SIZE,
    strict: bool = STRICT,
    out: Path = typer.Option(Path("runs/data"), help="Folder for the two PNG grids."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Describe a data set: sizes, balance, pixel statistics, duplicates; draw two sample grids."""
    from dataclasses import asdict

    from leanres.data.describe import describe

    dataset = load(name, path, size, strict)
    facts = describe(dataset)
    grids = _write_grids(dataset, out)
    if as_json:
        typer.echo(json.dumps(asdict(facts) | {"grids": [str(g) for g in grids]}, indent=1))
        return
    _print(facts, grids)


def _write_grids(dataset: Dataset, out: Path) -> list[Path]:
    import torch

    from leanres.augment.registry import Draw, augment, generator
    from leanres.data.describe import batch_grid, sample_grid
    from leanres.errors import UserError
    from leanres.training.recipes import RECIPES

    recipe = RECIPES["digits" if dataset.name == "digits" else "speed"]
    chosen = torch.randperm(len(dataset.train), generator=generator(0, 0))[:64]
    draw = Draw(generator(0, 1), chosen)
    batch = augment(dataset.train.images[chosen], recipe.augment, draw)
    grids = {"samples.png": sample_grid(dataset.train), "augmented.png": batch_grid(batch)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, image in grids.items():
            image.save(out / name)
    except OSError as error:
        raise UserError(f"cannot write the grids to {out}: {error.strerror or error}") from None
    return [out / name for name in grids]


def _print(facts: Description, grids: list[Path]) -> None:
    from rich.table import Table

    from leanres.cli.console import console

    out = console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("images of each class", no_wrap=True)
    for name in facts.splits:
        table.add_column(name, justify="right")
    for label in facts.classes:
        table.add_row(label, *(f"{s.per_class[label]:,}" for s in facts.splits.values()))
    table.add_row("all", *(f"{s.num_images:,}" for s in facts.splits.values()), style="bold")
    out.print(f"{facts.name} from {facts.source}")
    out.print(table)
    for name, split in facts.splits.items():
        height, width = split.size
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (split.mean, split.std))
        out.print(
            f"{name}: {height}x{width} pixels, mean {mean}, std {std}, fingerprint"
            f" {split.fingerprint[:16]}"
        )
    for pair in facts.duplicates:
        where = (
            f"within {pair.first}"
            if pair.first == pair.second
            else (f"of {pair.second} that are in {pair.first} too")
        )
        pairs = ", ".join(f"{a}={b}" for a, b in pair.pairs)
        out.print(f"duplicates {where}: {pair.count}{f' ({pairs})' if pairs else ''}")
    out.print(f"pictures: {', '.join(map(str, grids))}")
