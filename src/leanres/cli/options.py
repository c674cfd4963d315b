"""What several commands share: their options, the data set, the device, settings on a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.errors import NotFoundError, UserError

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.training.device import Device

DATA_HELP = "cifar10, digits, or a folder with one subfolder per class."
DATA_GROUP, TRAINING, OUTPUT = "Data", "Training", "Output"  # headings of the help pages
MACHINE = "Machine"

RECIPE = typer.Argument("speed", help="A recipe of `leanres recipes`, or a TOML file.")
TARGET = typer.Argument(metavar="RUN|WEIGHTS", help="A run folder or a .safetensors file.")

DATA = typer.Option("cifar10", "--data", help=DATA_HELP, rich_help_panel=DATA_GROUP)
RUN_DATA = typer.Option(
    None, "--data", help=f"{DATA_HELP} Default: the run's own.", rich_help_panel=DATA_GROUP
)
PATH = typer.Option(
    None,
    "--path",
    help="Where the data is; default: $LEANRES_DATA, the cache, a download.",
    rich_help_panel=DATA_GROUP,
)
SIZE = typer.Option(
    32,
    "--size",
    help="Side in pixels that a folder's images are resized to.",
    rich_help_panel=DATA_GROUP,
)
STRICT = typer.Option(
    False,
    "--strict",
    help="Stop at the first image that cannot be read.",
    rich_help_panel=DATA_GROUP,
)
SETTINGS = typer.Option(
    [],
    "--set",
    help="Change a setting of the recipe: --set lr=0.2 (repeatable).",
    rich_help_panel=TRAINING,
)
SEED = typer.Option(None, "--seed", help="Short for --set seed=N.", rich_help_panel=TRAINING)
MODEL = typer.Option(None, "--model", help="Short for --set model=NAME.", rich_help_panel=TRAINING)
DEVICE = typer.Option(
    "auto", "--device", help="auto, cpu, cuda, or cuda:1.", rich_help_panel=MACHINE
)
THREADS = typer.Option(
    0, "--threads", min=0, help="CPU threads; 0: one per core.", rich_help_panel=MACHINE
)
JSON = typer.Option(
    False, "--json", help="Print JSON; progress goes to stderr.", rich_help_panel=OUTPUT
)


def load_dataset(
    name: str, path: Path | None, size: int = 32, strict: bool = False, download: bool = True
) -> Dataset:
    """The data set, with a progress bar for a download and its notes on stderr."""
    from leanres.data.sources import load_data

    with _progress() as progress:
        dataset = load_data(
            name, path, size=size, strict=strict, download=download, progress=progress
        )
    _print_notes(dataset.notes)
    return dataset


def load_data_or_digits(
    name: str, path: Path | None, size: int, strict: bool
) -> tuple[Dataset, bool]:
    """The data set, and whether "auto" had to fall back to the digits."""
    if name != "auto":
        return load_dataset(name, path, size, strict), False
    try:
        return load_dataset("cifar10", path, size, strict), False
    except NotFoundError:
        typer.echo(
            "CIFAR-10 is not here and could not be downloaded: training on the embedded digits"
            " instead (set LEANRES_DATA to a folder with CIFAR-10)",
            err=True,
        )
        return load_dataset("digits", None, size), True


def load_run_data(
    info: dict[str, Any],
    name: str | None = None,
    path: Path | None = None,
    download: bool = True,
) -> Dataset:
    """The data that a run.json names, or what is given in its place."""
    from leanres.runs.layout import load_data_of

    with _progress() as progress:
        dataset = load_data_of(info, name, path, download, progress)
    _print_notes(dataset.notes)
    return dataset


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


@contextmanager
def _progress() -> Iterator[Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from leanres.cli.console import console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    out = console(stderr=True)
    # Not drawn off a terminal: even an empty bar leaves a blank line in a log.
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield update


def make_device(name: str, precision: str, compiled: bool | None, threads: int) -> Device:
    """The device of this process, its number of threads set; 0 threads: one per core."""
    import torch

    from leanres.training.device import detect

    if threads:
        torch.set_num_threads(threads)
    device = detect(name, precision, compiled)
    device.tune()
    return device


def changes(settings: list[str], **short: Any) -> dict[str, Any]:
    """What `--set` and the options short for it change; an option that was not given is None."""
    from leanres.training.recipe import parse_setting

    given = {key: value for key, value in short.items() if value is not None}
    return dict(map(parse_setting, settings)) | given


def current_command() -> str:
    """The running command as a shell takes it again."""
    return shlex.join(["leanres", *sys.argv[1:]])


def check_measure(measure: str) -> None:
    """UserError for anything but test and val."""
    if measure not in ("test", "val"):
        raise UserError(f"--measure {measure}: give test or val")


def numbers(option: str, text: str, example: str = "0,1,2") -> list[int]:
    """Different whole numbers with commas: "0,1,2" -> [0, 1, 2]. UserError that names `option`."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise UserError(f"{option} {text}: give different whole numbers with commas: {example}")
    return found


def with_tta(result: dict[str, Any]) -> str:
    """The accuracy under test-time augmentation, in words; nothing where there was none."""
    if result["tta"] == "none":
        return ""
    return f", {100 * result['accuracy_tta']:.2f} % with {result['tta']} augmentation"


def to_argv(settings: list[str], **options: Any) -> list[str]:
    """The arguments that give another `leanres train` these settings and options."""
    given = [word for text in settings for word in ("--set", text)]
    for name, value in options.items():
        if value is True:
            given.append(f"--{name}")
        elif value is not None and value is not False:
            given += [f"--{name}", str(value)]
    return given
