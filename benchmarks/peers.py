"""Train the same network with several programs: seconds per epoch, compared with leanres.

    python benchmarks/peers.py leanres,pytorch --data digits --images 500

All train by SGD on the same images, in batches of one size, with the same augmentation, each in a
process of its own. Except for leanres that is Pillow in worker processes and each library's
defaults, as its own tutorial writes a training. --script runs the script of a record beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from leanres.cli.console import print_table, write_json
from leanres.data.sources import load_data
from leanres.data.split import Split, channel_stats
from leanres.errors import UserError
from leanres.metrics.statistics import mean_sd
from leanres.models.preprocess import Normalize
from leanres.registry import Table
from leanres.runs.layout import commit
from leanres.training.device import detect, hardware
from leanres.training.loop import network_config, start, train_epochs
from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import RECIPES
from leanres.training.setup import Setup
from pillow_augment import STEPS, Picture

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
AIRBENCH_ROW = (
    r"\|\s*eval\s*\|[^|]*\|[^|]*\|\s*(?P<accuracy>[\d.]+)\s*\|\s*(?P<seconds>[\d.]+)\s*\|"
)


@dataclass(frozen=True)
class Work:
    """What every library trains: one network, some images, a batch size, a few epochs."""

    model: str = "resnet20"
    data: str = "cifar10"
    images: int = 10_000  # the first so many; 0: all
    batch_size: int = 128
    epochs: int = 2  # the first holds start-up: workers, compilation
    workers: int = 2
    device: str = "auto"
    augment: Sequence[str] = ("crop", "flip")  # names of pillow.STEPS

    def split(self) -> Split:
        """The training images; UserError where they do not fill a batch."""
        whole = load_data(self.data).train
        count = min(self.images or len(whole), len(whole))
        if count < self.batch_size:
            raise UserError(f"{count} images make no batch of {self.batch_size}: give more images")
        return whole.subset(range(count))

    def steps(self) -> list[Callable[[Picture], Picture]]:
        """The augmentation by Pillow, one function per name."""
        return [STEPS[name] for name in self.augment]

    def network(self, split: Split) -> nn.Module:
        """The network, with one output per class."""
        return network_config(self.recipe().model, split).build()

    def recipe(self) -> Recipe:
        """The recipe of leanres for this work."""
        settings = {
            "model": self.model,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": LR,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "augment": list(self.augment),
        }
        return from_dict(settings, RECIPES["plain-sgd"])


class PillowImages(Dataset[tuple[Tensor, int]]):
    """One image at a time through `steps`, then as a normalised tensor (3, H, W)."""

    def __init__(self, split: Split, steps: Sequence[Callable[[Picture], Picture]]) -> None:
        self.steps = steps
        self.pixels = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        mean, std = channel_stats(split)
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index])
        for step in self.steps:
            image = step(image)
        floats = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (floats - self.mean) / self.std, self.labels[index]


def loader(work: Work, split: Split) -> DataLoader[tuple[Tensor, int]]:
    """Batches from worker processes that persist from epoch to epoch."""
    return DataLoader(
        PillowImages(split, work.steps()),
        work.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=work.workers,
        persistent_workers=work.workers > 0,
    )


def _leanres(work: Work) -> Iterator[float]:
    split, device = work.split(), detect(work.device)
    device.tune()
    normalize = Normalize(*channel_stats(split))
    setup = Setup(work.recipe(), split.to(device.name), normalize, device)
    state = start(setup)
    begun = time.perf_counter()
    for _ in train_epochs(state, setup):
        yield time.perf_counter() - begun
        begun = time.perf_counter()


def _pytorch(work: Work) -> Iterator[float]:
    split, device = work.split(), detect(work.device).name
    model, batches = work.network(split).to(device), loader(work, split)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    for _ in range(work.epochs):
        begun = time.perf_counter()
        for images, labels in batches:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        float(loss)  # waits for the device
        yield time.perf_counter() - begun


def _lightning(work: Work) -> Iterator[float]:
    import lightning

    split = work.split()
    seconds: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = work.network(split)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

        def on_train_epoch_start(self) -> None:
            self.begun = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            seconds.append(time.perf_counter() - self.begun)

    cuda = detect(work.device).kind == "cuda"
    trainer = lightning.Trainer(
        max_epochs=work.epochs,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader(work, split))
    yield from seconds


def _fastai(work: Work) -> Iterator[float]:
    from fastai.basics import Callback, DataLoaders, Learner
    from fastai.optimizer import SGD

    split = work.split()
    seconds: list[float] = []

    class Watch(Callback):  # type: ignore[misc]
        def before_epoch(self) -> None:
            self.begun = time.perf_counter()

        def after_epoch(self) -> None:
            seconds.append(time.perf_counter() - self.begun)

    device = detect(work.device).name
    few = DataLoader(PillowImages(split.subset(range(2)), []), 2)  # it must have val images
    learner = Learner(
        DataLoaders(loader(work, split), few, device=device),
        work.network(split).to(device),
        loss_func=F.cross_entropy,
        opt_func=SGD,
        wd=WEIGHT_DECAY,
        moms=(MOMENTUM,) * 3,
        cbs=[Watch()],
    )
    with contextlib.redirect_stdout(sys.stderr):  # its table of losses
        learner.fit(work.epochs, LR)
    yield from seconds


PEERS: Table[Callable[[Work], Iterator[float]]] = Table(
    "peer",
    {"leanres": _leanres, "pytorch": _pytorch, "lightning": _lightning, "fastai": _fastai},
)


def chosen_peers(names: str) -> list[str]:
    """Names with commas -> a list; "all" -> those that are installed. UserError for any other."""
    chosen = []
    for name in PEERS if names == "all" else names.split(","):
        PEERS[name]  # an unknown one is a mistake
        if name in ("leanres", "pytorch") or importlib.util.find_spec(name):
            chosen.append(name)
        elif names == "all":
            print(f"note: {name} is not installed: pip install {name}", file=sys.stderr)
        else:
            raise UserError(f"{name} is not installed: pip install {name}")
    return chosen


def run_peer(name: str, work: Work) -> list[float]:
    """Seconds of each epoch of a peer, in a process of its own."""
    printed = _output([__file__, name, "--work", json.dumps(asdict(work))], name)
    return [float(x) for x in json.loads(printed.splitlines()[-1])]


def run_script(path: Path, pattern: str = AIRBENCH_ROW) -> dict[str, Any]:
    """n, and mean and sample deviation of what a script prints: accuracies, and seconds.

    `pattern` is a regular expression with the groups `accuracy` and `seconds` that matches once a
    training; by default the row that airbench's scripts end a training with. UserError where the
    script fails or nothing matches.
    """
    found = list(re.finditer(pattern, _output([str(path)], str(path))))
    if not found:
        raise UserError(f"{path} printed nothing that matches {pattern!r}: give its --pattern")
    figures: dict[str, Any] = {"n": len(found)}
    for key in ("accuracy", "seconds"):
        figures[key] = mean_sd([float(match[key]) for match in found])
    return figures


def check_scripts(paths: Sequence[Path], pattern: str) -> None:
    """UserError for mistakes in --script and --pattern that need no run to see."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"no script {path}")
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise UserError(f"--pattern {pattern!r}: {error}") from None
    if not {"accuracy", "seconds"} <= set(groups):
        raise UserError(
            f"--pattern {pattern!r}: name its groups (?P<accuracy>...) and (?P<seconds>...)"
        )


def _output(arguments: list[str], name: str) -> str:
    """What `python ARGUMENTS` prints; UserError with the last line of stderr where it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{name} ended with {done.returncode}: {last}")
    return done.stdout


def compare(args: argparse.Namespace) -> None:
    """Check everything, then run the peers and the scripts, and print a table or JSON."""
    work = Work(**{field.name: getattr(args, field.name) for field in fields(Work)})
    work.steps()
    work.network(work.split())
    names = chosen_peers(args.names)
    check_scripts(args.script, args.pattern)
    report: dict[str, Any] = {
        "hardware": hardware(detect(work.device)),
        "commit": commit(),
        "work": asdict(work),
        "epoch_seconds": {},
        "scripts": {},
    }
    for name in names:
        report["epoch_seconds"][name] = seconds = run_peer(name, work)
        print(f"{name}: {seconds[-1]:.1f} s per epoch", file=sys.stderr)
        write_json(args.out, report)  # the next program may fail
    for path in args.script:
        report["scripts"][str(path)] = run_script(path, args.pattern)
        write_json(args.out, report)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    epochs = sorted(report["epoch_seconds"].items(), key=lambda item: item[1][-1])
    ours = dict(epochs).get("leanres")
    rows = [
        [name, f"{s[-1]:.1f}", f"{s[0]:.1f}", f"{s[-1] / ours[-1]:.2f}" if ours else "-"]
        for name, s in epochs
    ]
    if rows:
        print_table(["program", "s per epoch", "first epoch", "times leanres"], rows)
    for path, found in report["scripts"].items():
        accuracy, seconds = found["accuracy"]["mean"], found["seconds"]["mean"]
        print(f"{path}: n = {found['n']}, accuracy {accuracy:.4g}, {seconds:.4g} s a training")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: give {least} or more")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("peers.py", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    programs = f"{', '.join(PEERS)}, with commas; all: those that are installed"
    add("names", nargs="?", default="all", metavar="PROGRAMS", help=programs)
    add("--model", default=Work.model, help="the network that all of them train")
    add("--batch-size", type=at_least(1), default=Work.batch_size, help="images per batch")
    add("--epochs", type=at_least(1), default=Work.epochs, help="the last one counts")
    add(
        "--augment",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(Work.augment),
        help=f"with commas, in order: {', '.join(STEPS)}",
    )
    add("--data", default=Work.data, help="a data set, as in `leanres train`")
    add("--images", type=at_least(0), default=Work.images, help="the first N images; 0: all")
    add("--script", type=Path, action="append", default=[], help="a script of others (repeatable)")
    add(
        "--pattern",
        default=AIRBENCH_ROW,
        help="finds groups accuracy and seconds in its output; default: as airbench prints them",
    )
    add("--device", default=Work.device, help="auto, cpu, cuda or cuda:1")
    add("--workers", type=at_least(0), default=Work.workers, help="processes that run Pillow")
    add("--out", type=Path, help="write the result to this JSON file too")
    add("--json", action="store_true", help="print JSON; progress goes to stderr")
    add("--work", help=argparse.SUPPRESS)  # run one peer in this process
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    parser = _parser()
    args = parser.parse_args(words)
    try:
        if args.work:
            print(json.dumps(list(PEERS[args.names](Work(**json.loads(args.work))))))
        else:
            compare(args)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
