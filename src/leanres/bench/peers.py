"""The same training by other libraries, each in a process of its own, and by their scripts.

    python -m leanres.bench.peers pytorch '{"model": "resnet20", "images": 5000}'

prints the seconds of each epoch as JSON. All train one network on the same images by SGD, in
batches of one size, with the same augmentation (crops with 4 px of padding and flips, or more).
Except for ours that is Pillow in worker processes and each library's defaults, written as its own
tutorial writes a training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from leanres.bench.pillow import STEPS
from leanres.data.sources import load_data
from leanres.data.split import Split, channel_stats
from leanres.errors import UserError
from leanres.metrics.statistics import mean_sd
from leanres.models.preprocess import Normalize
from leanres.registry import Table
from leanres.training.device import detect
from leanres.training.loop import network_config, start, train
from leanres.training.recipe import from_dict
from leanres.training.recipes import RECIPES
from leanres.training.setup import Setup

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
AIRBENCH_ROW = (
    r"\|\s*eval\s*\|[^|]*\|[^|]*\|\s*(?P<accuracy>[\d.]+)\s*\|\s*(?P<seconds>[\d.]+)\s*\|"
)


@dataclass(frozen=True)
class Work:
    """What every library trains: one network, some images, a batch size, a few epochs."""

    model: str = "resnet20"
    data: str = "cifar10"
    path: str | None = None
    images: int = 10_000  # the first so many; 0: all
    batch_size: int = 128
    epochs: int = 2  # the first holds start-up: workers, compilation
    workers: int = 2
    device: str = "auto"
    augment: Sequence[str] = ("crop", "flip")  # names of pillow.STEPS

    def split(self) -> Split:
        """The training images; UserError where they do not fill a batch."""
        whole = load_data(self.data, self.path and Path(self.path)).train
        count = min(self.images or len(whole), len(whole))
        if count < self.batch_size:
            raise UserError(f"{count} images make no batch of {self.batch_size}: give more images")
        return whole.subset(range(count))

    def steps(self) -> list[Callable[[Image.Image], Image.Image]]:
        """The augmentation of the peers, one function of an image each."""
        return [STEPS[name] for name in self.augment]

    def network(self, split: Split) -> nn.Module:
        """The network, with one output per class."""
        return network_config(self.recipe(), split.classes).build()

    def recipe(self) -> Any:
        """Our recipe for this work."""
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
    """One image at a time through `steps`, functions of pillow.STEPS; then a normalised tensor."""

    def __init__(self, split: Split, steps: Sequence[Callable[[Image.Image], Image.Image]]) -> None:
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
        width, height = image.size
        bytes_ = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        floats = bytes_.view(height, width, 3).permute(2, 0, 1).float() / 255
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


def _ours(work: Work) -> Iterator[float]:
    recipe, split = work.recipe(), work.split()
    device = detect(work.device)
    device.tune()
    setup = Setup(recipe, split.to(device.name), Normalize(*channel_stats(split)), device)
    state = start(setup)
    begun = time.perf_counter()
    for _ in train(state, setup):
        yield time.perf_counter() - begun
        begun = time.perf_counter()


def _pytorch(work: Work) -> Iterator[float]:
    split, device = work.split(), detect(work.device).name
    model = work.network(split).to(device)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    yield from _plain_loop(model, loader(work, split), optimizer, work.epochs, device)


def _plain_loop(
    model: nn.Module,
    batches: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    device: str,
) -> Iterator[float]:
    model.train()
    for _ in range(epochs):
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

    batches = loader(work, split)
    few = DataLoader(PillowImages(split.subset(range(2)), work.steps()), 2)
    device = detect(work.device).name
    learner = Learner(
        DataLoaders(batches, few, device=device),
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
    {
        "leanres": _ours,
        "pytorch": _pytorch,
        "lightning": _lightning,
        "fastai": _fastai,
    },
)


def missing(name: str) -> str | None:
    """The package that a peer needs and that is not installed; None if nothing is missing."""
    PEERS[name]  # an unknown one is a mistake
    package = {"leanres": "torch", "pytorch": "torch"}.get(name, name)
    return None if importlib.util.find_spec(package) else package


def run_peer(name: str, work: Work) -> list[float]:
    """Seconds of each epoch of a peer, in a process of its own."""
    words = ["-m", "leanres.bench.peers", name, json.dumps(asdict(work))]
    return [float(x) for x in json.loads(_output(words, name).splitlines()[-1])]


def run_script(path: Path, pattern: str = AIRBENCH_ROW) -> dict[str, Any]:
    """n, and mean and sample deviation of what a script prints: accuracies, and seconds.

    `pattern` is a regular expression with the groups `accuracy` and `seconds` that matches once a
    training; by default the row that airbench's scripts end a training with. UserError where the
    script fails or nothing matches.
    """
    row = check_script(path, pattern)
    found = list(row.finditer(_output([str(path)], str(path))))
    if not found:
        raise UserError(f"{path} printed nothing that matches {pattern!r}: give its --pattern")
    figures: dict[str, Any] = {"n": len(found)}
    for key in ("accuracy", "seconds"):
        figures[key] = mean_sd([float(match[key]) for match in found])
    return figures


def check_script(path: Path, pattern: str = AIRBENCH_ROW) -> re.Pattern[str]:
    """The compiled expression of `run_script`. UserError for mistakes that need no run to see."""
    if not path.is_file():
        raise UserError(f"no script {path}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern!r}: {error}") from None
    if not {"accuracy", "seconds"} <= set(compiled.groupindex):
        raise UserError(
            f"--pattern {pattern!r}: name its groups (?P<accuracy>...) and (?P<seconds>...)"
        )
    return compiled


def _output(arguments: list[str], name: str) -> str:
    """What `python ARGUMENTS` prints; UserError with the last line of stderr where it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{name} ended with {done.returncode}: {last}")
    return done.stdout


if __name__ == "__main__":
    print(json.dumps(list(PEERS[sys.argv[1]](Work(**json.loads(sys.argv[2]))))))
