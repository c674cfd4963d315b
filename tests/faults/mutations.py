"""Mutations of every kind of file that leanres writes or reads: none changes an answer in silence.

A tiny run is trained, its weights exported, a ledger entry and, where CIFAR-10 is at hand, batches
written. Then a file is changed at random (a bit, a byte, a block, cut, longer, two parts exchanged)
and read: it has to be refused by a UserError, or said to be edited, or mean what it meant before.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filesystem import recipe, tiny_data

from leanres.data.sources import cifar10, load_data
from leanres.data.sources.cifar10_formats import BINARY_FILES, PYTHON_FILES, read_cifar10
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.preprocess import ImageClassifier
from leanres.runs import checkpoint
from leanres.runs import fit as fits
from leanres.runs import run as runs
from leanres.runs.layout import CHECKPOINTS
from leanres.runs.ledger import edited_entry, read_ledger
from leanres.runs.manifest import MANIFEST, edited
from leanres.runs.run_json import read_info
from leanres.runs.weights import load_classifier
from leanres.training.device import CPU
from leanres.trials.ledger_entry import add_run, read_run

Reader = Callable[[], tuple[Any, list[str]]]  # what the file means, and the notes on reading it


@dataclass(frozen=True)
class Kind:
    """A file, how it is read, and what it means as it was written."""

    file: Path
    read: Reader


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Other content: one random change of one of seven kinds."""
    at, many = rng.randrange(len(content)), rng.randint(1, 64)
    head, tail = content[:at], content[at:]
    other = rng.randrange(len(content))
    changed = rng.choice(
        [
            head + bytes([tail[0] ^ 1 << rng.randrange(8)]) + tail[1:],
            head + rng.randbytes(1) + tail[1:],
            head + bytes(len(tail[:many])) + tail[many:],
            head,
            head + rng.randbytes(many) + tail,
            head + tail[many:],
            head + content[other : other + len(tail[:many])].ljust(len(tail[:many])) + tail[many:],
        ]
    )
    return changed if changed != content else mutate(content, rng)


def tensors_of(classifier: ImageClassifier) -> list[Any]:
    state = classifier.state_dict()
    return [(name, state[name].numpy().tobytes()) for name in state] + [classifier.preprocess]


def read_weights(file: Path) -> tuple[Any, list[str]]:
    classifier, config = load_classifier(file)
    return [*tensors_of(classifier), config], []


def read_checkpoint(run: runs.Run, folder: Path) -> tuple[Any, list[str]]:
    notes = checkpoint.restore_(folder / CHECKPOINTS, run.state)
    tensors, meta = checkpoint.pack(run.state)
    return [(name, t.numpy().tobytes()) for name, t in sorted(tensors.items())] + [meta], notes


def read_folder(folder: Path) -> tuple[Any, list[str]]:
    return read_info(folder), edited(folder)


def read_entry(file: Path) -> tuple[Any, list[str]]:
    rows, notes = read_ledger(file.parent / "none", file.parent)
    return rows, notes + edited_entry(file)


def read_batches(folder: Path) -> tuple[Any, list[str]]:
    files = cifar10.find_files(folder)
    assert files is not None
    train, test = read_cifar10(files, None)
    return [train.fingerprint, test.fingerprint], list(cifar10._differences(train, test))


def cifar_kinds(folder: Path) -> dict[str, Kind]:
    """CIFAR-10 as its official binary and python batches, and how they are read."""
    data = load_data("cifar10")
    assert data.test is not None
    blocks = [*data.train.images.split(10_000), data.test.images]
    labels = [*data.train.labels.split(10_000), data.test.labels]
    kinds = {}
    for kind, names in (("binary", BINARY_FILES), ("python", PYTHON_FILES)):
        (folder / kind).mkdir()
        for name, images, numbers in zip(names, blocks, labels, strict=True):
            rows = images.flatten(1).numpy()
            if kind == "binary":
                content = np.hstack([numbers.numpy()[:, None].astype(np.uint8), rows]).tobytes()
            else:
                content = pickle.dumps({b"data": rows, b"labels": numbers.tolist()}, protocol=2)
            (folder / kind / name).write_bytes(content)
        kinds[f"{kind} batch"] = Kind(
            folder / kind / names[2], partial(read_batches, folder / kind)
        )
    return kinds


def kinds_of(folder: Path, data: Dataset) -> dict[str, Kind]:
    """A trained run, its files and what is made from it, and how each is read."""
    device = CPU("cpu", "float32", False)
    fits.fit(folder / "run", recipe(), data, device)
    run = folder / "run"
    results = folder / "results"
    results.mkdir()
    entry = results / "entry.json"
    header = {"command": "none", "counted": "none", "recipe": recipe().to_dict()}
    add_run(entry, header, read_run(run))
    (newest, *older) = checkpoint.saved(run / CHECKPOINTS)
    for path in older:
        shutil.rmtree(path)
    fresh = runs.prepare(recipe(), data, device)
    kinds = {
        "weights": Kind(
            run / "model.safetensors", partial(read_weights, run / "model.safetensors")
        ),
        "ledger entry": Kind(entry, partial(read_entry, entry)),
    }
    for name in ("state.safetensors", "state.json", "manifest.json"):
        read = partial(read_checkpoint, fresh, run)
        kinds[f"checkpoint's {name}"] = Kind(newest / name, read)
    names = (
        "run.json",
        "metrics.jsonl",
        "metrics.csv",
        "times.jsonl",
        "predictions.parquet",
        MANIFEST,
    )
    for name in names:
        kinds[name] = Kind(run / name, partial(read_folder, run))
    return kinds


def outcome(kind: Kind, right: Any) -> str:
    """How reading a changed file ends; "silent" and "traceback" are faults."""
    try:
        found, notes = kind.read()
    except UserError:
        return "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "said" if notes else "same" if found == right else "silent"


def main(count: int, seed: int = 0, cifar: bool = False) -> dict[str, Any]:
    """`count` mutations, the kinds in turn: outcomes by kind, and what went wrong.

    cifar: of the batches of CIFAR-10, 184 MB each time, in place of a run's files.
    """
    torch.set_num_threads(1)
    rng, wrong = random.Random(seed), []
    outcomes: dict[str, Counter[str]] = {}
    with TemporaryDirectory() as name:
        kinds = cifar_kinds(Path(name)) if cifar else kinds_of(Path(name), tiny_data())
        right = {key: kind.read() for key, kind in kinds.items()}
        assert all(not notes for _, notes in right.values()), right
        for turn in range(count):
            key = list(kinds)[turn % len(kinds)]
            kind = kinds[key]
            before = kind.file.read_bytes()
            kind.file.write_bytes(mutate(before, rng))
            ended = outcome(kind, right[key][0])
            outcomes.setdefault(key, Counter())[ended.partition(":")[0]] += 1
            if ended == "silent" or ended.startswith("traceback"):
                wrong.append(f"{key}, mutation {turn}: {ended}")
            kind.file.write_bytes(before)
    counts = {key: dict(counter) for key, counter in outcomes.items()}
    return {"mutations": count, "outcomes": counts, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), cifar="cifar10" in sys.argv), indent=1))
