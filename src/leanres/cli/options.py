"""Shared by commands: options, loading of data and networks, the device, recipe settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from leanres.cli import complete
from leanres.cli.console import say
from leanres.errors import NotFoundError, UserError, named

if TYPE_CHECKING:
    from leanres.data.split import Dataset
    from leanres.models.preprocess import Preprocess
    from leanres.runs.predictor import Predictor
    from leanres.training.device import Device
    from leanres.training.recipe import Recipe
    from leanres.trials.cluster import Ray
    from leanres.trials.jobs import Event

Measure = Literal["test", "val"]
Executors = Literal["local", "ray"]

# Options under the headings of the help pages, in the order in which a command lists them.
training_option = partial(typer.Option, rich_help_panel="Training")
data_option = partial(typer.Option, rich_help_panel="Data")
source_option = partial(data_option, autocompletion=complete.DATA)
measurement_option = partial(typer.Option, rich_help_panel="Measurement")
machine_option = partial(typer.Option, rich_help_panel="Machine")
output_option = partial(typer.Option, rich_help_panel="Output")

DATA_HELP = (
    "cifar10, cifar10.1, cifar100, cifar100-coarse, mnist, fashion-mnist, svhn, stl10 (from"
    " $LEANRES_DATA, else the cache, else a download), digits, or a path: their files, a folder"
    " with one subfolder per class, a table of files and labels beside images, npz, parquet, idx."
)

BUDGET_HELP = (
    "5M parameters, or terms as in params=5M,macs=1.2G,memory=256K,file=2MB: memory of one image's"
    " activations in float32 (memory-int8), weights file in float16 (file-int8), receptive-field"
    " and min-receptive-field in pixels."
)

RECIPE = typer.Argument(
    "speed",
    help="A recipe of `leanres recipes`, or a TOML file.",
    autocompletion=complete.RECIPE,
)
TARGET = typer.Argument(metavar="RUN|WEIGHTS", help="A run folder or a .safetensors file.")
TARGETS = typer.Argument(
    metavar="RUN|WEIGHTS",
    help="A run folder or a .safetensors file; of several, their average is measured too.",
)

SETTINGS = training_option(
    [],
    "--set",
    metavar="KEY=VALUE",
    autocompletion=complete.SETTING,
    help="Change a setting of the recipe: --set lr=0.2 (repeatable).",
)
EPOCHS = training_option(None, help="Short for --set epochs=N.")
SEED = training_option(None, help="Short for --set seed=N.")
MODEL = training_option(
    None,
    help="Short for --set model=NAME; also anything that `leanres summary` takes.",
    autocompletion=complete.MODEL,
)
FOLDS = training_option(
    None,
    min=2,
    max=1000,
    help="Cross-validation: train as many networks, each on all training images but one fold, and"
    " predict that fold; the same command continues. Test is not read.",
)
STEP_MODEL = typer.Argument(
    None, help="A model; default: the recipe's own.", autocompletion=complete.MODEL
)
STEP_RECIPE = training_option(
    "speed",
    help="The recipe whose batch, augmentation and optimizer are used.",
    autocompletion=complete.RECIPE,
)

DATA = source_option("cifar10", help=DATA_HELP)
DATA_OR_AUTO = source_option(
    "cifar10", help=f"{DATA_HELP[:-1]}; auto: cifar10, or digits where CIFAR-10 is not found."
)
RUN_DATA = source_option(None, help=f"{DATA_HELP} Default: the run's own.")
TARGET_DATA = source_option(
    None, help=f"{DATA_HELP} Default: the run's own; for a weights file cifar10."
)
SIZE = data_option(
    None, help="Side in pixels that digits and a folder's images are resized to. Default: 32."
)
CHANNELS = data_option(
    None,
    help="What images are converted to: 1 (grey), 3 (RGB) or 4 (RGBA). Default: 3.",
)
STRICT = data_option(
    False, "--strict", help="Stop at the first image that cannot be read, instead of skipping it."
)

TTA_HELP = (
    "Test-time augmentation, measured beside the plain accuracy: none, flip, flip-shift,"
    " flip-shift-unsure, or auto: flip-shift where the recipe flips images, else none."
)
TTA_OPTION = measurement_option("auto", help=TTA_HELP, autocompletion=complete.TTA)

DEVICE = machine_option(
    "auto",
    "--device",
    help="auto (an NVIDIA GPU if there is one, else cpu), cpu, cuda, cuda:1, mps (Apple) or xpu"
    " (Intel).",
    autocompletion=complete.DEVICE,
)
THREADS = machine_option(0, min=0, max=1024, help="CPU threads; 0: one per core.")
PRECISION = machine_option(
    "auto",
    help="float32 or bfloat16. Default: as the run or weights file was measured.",
    autocompletion=complete.PRECISION,
)
DEVICES = machine_option(
    "auto", help="Comma-separated devices to spread the trainings over: cuda:0,cuda:1."
)
AT_ONCE = machine_option(0, min=0, help="Number of trainings at a time; 0: one per device.")
THREADS_EACH = machine_option(
    0, min=0, max=1024, help="CPU threads of each training; 0: its share of the cores."
)
EXECUTOR = machine_option(
    "local",
    "--executor",
    help="local: this machine; ray: those of a Ray cluster (pip install 'leanres[cluster]').",
)
ADDRESS = machine_option(
    "",
    help="The head of the Ray cluster, as HOST:6379, or auto: the one that this machine is in."
    " Default: Ray on this machine alone.",
)

FOLD_DEVICES = machine_option(
    None,
    "--devices",
    help="Of --folds: comma-separated devices to spread the trainings over: cuda:0,cuda:1.",
)
FOLDS_AT_ONCE = machine_option(
    0, "--at-once", min=0, help="Of --folds: number of trainings at a time; 0: one per device."
)

NO_REPORT = output_option(False, "--no-report", help="Write no report.html at the end.")
TRACK = output_option(
    "",
    help="Log metrics live: tensorboard, mlflow, wandb (offline); several as mlflow,wandb.",
    autocompletion=complete.TRACKER,
)
OUT_JSON = output_option(None, help="Write the result to this JSON file too.")
JSON = output_option(False, "--json", help="Print JSON; progress goes to stderr.")


def load_dataset(
    name: str,
    size: int | None = None,
    strict: bool = False,
    channels: int | None = None,
    whites: Mapping[str, float] | None = None,
) -> Dataset:
    """The data set, with a progress bar for a download; its notes go to stderr."""
    from leanres.data.sources import load_data

    asked: dict[str, Any] = {"size": size, "channels": channels, "whites": whites}
    with progress_bar() as progress:
        dataset = load_data(name, strict=strict, progress=progress, **asked)
    print_notes(dataset.notes)
    return dataset


def load_data_or_digits(
    name: str, size: int | None, strict: bool, channels: int | None, recipe: str
) -> tuple[Dataset, str, str]:
    """The data set, its name, and the recipe for it.

    "auto" is CIFAR-10. Where that is not found, it is the digits, and the recipe digits replaces
    speed.
    """
    if name != "auto":
        return load_dataset(name, size, strict, channels), name, recipe
    try:
        return load_dataset("cifar10", size, strict, channels), "cifar10", recipe
    except NotFoundError:
        say(
            "CIFAR-10 was not found and could not be downloaded: training on the embedded digits"
            " instead (set LEANRES_DATA to a folder with CIFAR-10)",
            err=True,
        )
        digits = load_dataset("digits", size, channels=channels)
        return digits, "digits", "digits" if recipe == "speed" else recipe


def load_run_data(info: dict[str, Any], name: str | None = None, download: bool = True) -> Dataset:
    """The data that a run.json names, or the data given instead."""
    from leanres.runs.layout import load_data_of

    with progress_bar() as progress:
        dataset = load_data_of(info, name, download, progress)
    print_notes(dataset.notes)
    return dataset


def load_target_data(
    target: Path, preprocess: Preprocess, name: str | None, strict: bool = False
) -> Dataset:
    """The data to measure a run or weights file on: as given, else the run's own, else CIFAR-10.

    Image files are decoded to what the network takes. For a run without images that it was trained
    on, and with the val split that it held out.
    """
    from leanres.runs.images import unseen
    from leanres.runs.run_json import INFO, read_info

    as_trained = preprocess.size, strict, preprocess.channels, preprocess.whites
    if not (target / INFO).exists():
        return load_dataset("cifar10" if name is None else name, *as_trained)
    info = read_info(target)
    dataset = load_run_data(info) if name is None else load_dataset(name, *as_trained)
    dataset, notes = unseen(target, info, dataset)
    print_notes(notes)
    return dataset


def print_notes(notes: tuple[str, ...] | list[str]) -> None:
    """One line each on stderr."""
    for note in notes:
        say(f"note: {note}", err=True)


def print_edits(target: Path) -> None:
    """Say which files of a run folder are not as leanres wrote them; nothing for a weights file."""
    from leanres.runs.manifest import edited

    print_notes(edited(target) if target.is_dir() else [])


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; the body calls it with (what, done, total)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from leanres.cli.console import console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    out = console(stderr=True)
    # Only on a terminal: even an empty bar leaves a blank line in a log. What goes to stdout stays
    # there: it may be a file.
    kept: Any = {"transient": True, "redirect_stdout": False}
    with Progress(*columns, console=out, disable=not (shown and out.is_terminal), **kept) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield update


def make_device(name: str, recipe: Recipe, threads: int) -> Device:
    """The device, ready for training, with the process's CPU threads set; 0: one per core."""
    from leanres.training.device import detect

    set_threads(threads)
    device = detect(name, recipe.precision, recipe.compiled)
    device.tune()
    return device


def make_ray(
    executor: Executors,
    address: str,
    folder: Path,
    devices: str,
    at_once: int = 0,
    threads: int = 0,
    exclusive: bool = False,
) -> Ray | None:
    """The executor of `--executor ray`; None for local. `folder` holds the run folders."""
    if executor == "local":
        if address:
            raise UserError("--address is a Ray cluster's: add --executor ray")
        return None
    if "," in devices or ":" in devices:
        raise UserError(f"{devices}: Ray chooses the machines and GPUs: give auto, cuda or cpu")
    from leanres.trials.cluster import Ray

    return Ray(folder, address, devices, at_once, threads, exclusive)


def make_predictor(target: Path, device: str, threads: int, precision: str = "auto") -> Predictor:
    """The network of a run folder or weights file, ready to evaluate and predict."""
    from leanres.runs.predictor import load_predictor

    set_threads(threads)
    predictor = load_predictor(target, device, precision)
    print_edits(target)
    return predictor


def set_threads(threads: int | None) -> None:
    """Set PyTorch's CPU threads; 0 or None leaves them as they are, one per core."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def changes(settings: list[str], **short: Any) -> dict[str, Any]:
    """The settings that `--set` and the options short for it change; None was not given.

    A network may be anything that `leanres summary` takes; that of `init` is the default.
    UserError for a setting that is given two values.
    """
    from leanres.runs.weights import weights_file
    from leanres.training.recipe import parse_setting

    found: dict[str, Any] = {}
    given = [(key, value) for key, value in short.items() if value is not None]
    for key, value in [*map(parse_setting, settings), *given]:
        if found.setdefault(key, value) != value:
            raise UserError(
                f"{key} = {found[key]} and {key} = {value} were both given: give one of them"
            )
    if isinstance(network := found.get("model"), str):
        found["model"] = _network(network)
    elif network is None and (weights := found.get("init")):
        with named(f"init = {weights!r}"):
            weights_file(weights)  # UserError for a name, which the model of a recipe may be
            found["model"] = _network(weights)
    return found


def _network(given: str) -> Any:
    """A network's name; a config for anything else that `leanres summary` takes."""
    from leanres.models.zoo import config_to_dict
    from leanres.runs.network import find_network

    found = find_network(given)
    return found.name if found.is_named else config_to_dict(found.config)


def current_command() -> str:
    """The running command, quoted for a shell."""
    return shlex.join(["leanres", *sys.argv[1:]])


def check_tta(tta: str) -> None:
    """UserError for an unknown test-time augmentation, before any work."""
    from leanres.metrics.inference import TTA

    if tta != "auto":
        TTA[tta]


def check_val(measure: str, has_val: bool) -> None:
    """UserError where val is to be measured and there is none."""
    if measure == "val" and not has_val:
        raise UserError(
            "--measure val: there are no val images; --set val=0.1 holds a tenth of train out"
        )


def event_line(event: Event) -> str:
    """What happened to one of many trainings: "finished runs/a-0: 93.12 % of 10,000 ..., 14 s"."""
    from leanres.metrics.classification import accuracy_text
    from leanres.runs.run_json import read_info

    detail = event.detail
    if event.kind == "finished":
        result = read_info(event.job.folder)["result"]
        detail = f"{accuracy_text(result)}, {result['train_seconds']:,.0f} s"
    return f"{event.kind:8} {event.job.folder}{detail and f': {detail}'}"
