"""Mutations of every kind of file that leanres writes or reads: none changes an answer in silence.

A tiny run is trained, a ledger entry and CIFAR-10 in its formats are written. Then a file is
changed at random (a bit, a byte, a block, cut, longer, two parts exchanged) and read, by functions
or by the commands that make a page or a card of it: it has to be refused by a UserError, or said to
be edited, or mean what it meant before.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filesystem import recipe, tiny_data
from PIL import Image
from progress import shown

from leanres.cli import main as command_line
from leanres.data.sources import cifar10, cifar10_formats, load_data
from leanres.data.sources.cifar10_formats import BINARY_FILES, PYTHON_FILES, read_cifar10
from leanres.data.split import Split
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
    at, many, other = rng.randrange(len(content)), rng.randint(1, 64), rng.randrange(len(content))
    head, part, tail = content[:at], content[at : at + many], content[at + many :]
    made: Callable[[], bytes] = rng.choice(
        [
            lambda: head + bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:] + tail,
            lambda: head + rng.randbytes(1) + part[1:] + tail,
            lambda: head + bytes(len(part)) + tail,
            lambda: head,
            lambda: head + rng.randbytes(many) + part + tail,
            lambda: head + tail,
            lambda: head + content[other : other + len(part)].ljust(len(part)) + tail,
        ]
    )
    changed = made()
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
    splits = {"train": train, "test": test}
    return [train.fingerprint, test.fingerprint], list(cifar10.differences(splits))


def read_command(*words: object, made: Path | None = None) -> tuple[Any, list[str]]:
    """What a command prints, and the file that it makes; its notes."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    if code == 2:
        raise UserError(err.getvalue())
    if code:
        raise RuntimeError(f"exit code {code}: {err.getvalue()}")
    notes = [line for line in err.getvalue().splitlines() if line.startswith("note:")]
    return [out.getvalue(), made and made.read_text()], notes


def page_kinds(folder: Path) -> dict[str, Kind]:
    """A run's files, read by the commands that make a page, a card, a table or figures of them."""
    run, weights = folder / "run", folder / "out.safetensors"
    origin = {"data": "digits", "path": None, "size": 8}
    device = CPU("cpu", "float32", False)
    fits.complete(runs.create(run, recipe(), load_data("digits", size=8), device, origin))
    reads: dict[str, Reader] = {
        "report": partial(read_command, "report", run, made=run / "report.html"),
        "report --text": partial(read_command, "report", run, "--text"),
        "export --card": partial(
            read_command, "export", run, weights, "--card", made=weights.with_suffix(".md")
        ),
        "evaluate": partial(read_command, "evaluate", run, "--tta", "none"),
        "runs": partial(read_command, "runs", "--runs", folder, "--results", folder / "none"),
    }
    read_by = {
        "run.json": reads,
        "predictions.parquet": ["report", "report --text"],
        "metrics.jsonl": ["report"],
        "model.safetensors": ["report", "export --card", "evaluate"],
    }
    return {
        f"{name}, by {command}": Kind(run / name, reads[command])
        for name, commands in read_by.items()
        for command in commands
    }


def parquet(part: Split) -> bytes:
    """A shard as the Hub has it: images as PNG, the names of the classes in the schema."""
    blobs = []
    for image in part.images:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG", compress_level=1)
        blobs.append({"bytes": stream.getvalue()})
    about = {"info": {"features": {"label": {"names": part.classes}}}}
    table = pa.table({"img": blobs, "label": part.labels.numpy()})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), sink)
    return bytes(sink.getvalue().to_pybytes())


def batch(part: Split, kind: str) -> bytes:
    """An official batch, python or binary."""
    rows, labels = part.images.flatten(1).numpy(), part.labels.numpy()
    if kind == "binary":
        return np.hstack([labels[:, None].astype(np.uint8), rows]).tobytes()
    return pickle.dumps({b"data": rows, b"labels": labels.tolist()}, protocol=2)


def cifar_kinds(folder: Path, train: Split, test: Split) -> dict[str, Kind]:
    """CIFAR-10 in each of its formats, and how it is read."""
    count = len(test)
    parts = [train.subset(range(i * count, (i + 1) * count)) for i in range(5)] + [test]
    shards = [*(f"train-{i:05d}-of-00005.parquet" for i in range(5)), "test-00000-of-00001.parquet"]
    files: dict[str, dict[str, bytes]] = {
        "binary": {n: batch(p, "binary") for n, p in zip(BINARY_FILES, parts, strict=True)},
        "python": {n: batch(p, "python") for n, p in zip(PYTHON_FILES, parts, strict=True)},
        "parquet": {n: parquet(p) for n, p in zip(shards, parts, strict=True)},
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files["python"].items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    files["archive"] = {cifar10.ARCHIVES[0]: stream.getvalue()}
    kinds = {}
    for kind, contents in files.items():
        (folder / kind).mkdir()
        for name, content in contents.items():
            (folder / kind / name).write_bytes(content)
        changed = folder / kind / [*contents][len(contents) // 3]
        kinds[f"{kind} of CIFAR-10"] = Kind(changed, partial(read_batches, folder / kind))
    return kinds


def real_cifar_kinds(folder: Path) -> dict[str, Kind]:
    """The real images: 184 MB are read for each mutation."""
    data = load_data("cifar10")
    assert data.test is not None
    return cifar_kinds(folder, data.train, data.test)


def small_cifar_kinds(folder: Path) -> dict[str, Kind]:
    """Batches of 10 digits, which `small_cifar` lets pass as all of CIFAR-10."""
    digits = load_data("digits", size=32)
    assert digits.test is not None
    some = (digits.train.subset(range(50)), digits.test.subset(range(10)))
    train, test = (replace(part, classes=cifar10_formats.CLASSES) for part in some)
    cifar10.FINGERPRINTS.update(train=train.fingerprint, test=test.fingerprint)
    return cifar_kinds(folder, train, test)


@contextlib.contextmanager
def small_cifar() -> Iterator[None]:
    """CIFAR-10 has 60 images meanwhile."""
    small = replace(cifar10.CIFAR10, counts={"train": 50, "test": 10})
    with (
        patch.object(cifar10_formats, "_ROWS", 10),
        patch.object(cifar10, "CIFAR10", small),
        patch.dict(cifar10.FINGERPRINTS),
    ):
        yield


def run_kinds(folder: Path) -> dict[str, Kind]:
    """A trained run, its files and what is made from it, and how each is read."""
    device, data = CPU("cpu", "float32", False), tiny_data()
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


def outcome(kind: Kind, right: Any, known: list[str]) -> str:
    """How reading a changed file ends; "silent" and "traceback" are faults."""
    try:
        found, notes = kind.read()
    except UserError:
        return "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "said" if {*notes} - {*known} else "same" if found == right else "silent"


GROUPS: dict[str, Callable[[Path], dict[str, Kind]]] = {
    "run": run_kinds,
    "pages": page_kinds,
    "small cifar10": small_cifar_kinds,
    "cifar10": real_cifar_kinds,
}


def main(count: int, seed: int = 0, of: str = "run") -> dict[str, Any]:
    """`count` mutations of a group's kinds, in turn: outcomes by kind, and what went wrong."""
    torch.set_num_threads(1)
    rng, wrong = random.Random(seed), []
    outcomes: dict[str, Counter[str]] = {}
    own = small_cifar() if of == "small cifar10" else contextlib.nullcontext()
    with TemporaryDirectory() as name, own:
        kinds = GROUPS[of](Path(name))
        right = {key: kind.read() for key, kind in kinds.items()}
        for turn in shown(range(count), f"mutations of {of}"):
            key = list(kinds)[turn % len(kinds)]
            kind = kinds[key]
            before = kind.file.read_bytes()
            kind.file.write_bytes(mutate(before, rng))
            ended = outcome(kind, *right[key])
            outcomes.setdefault(key, Counter())[ended.partition(":")[0]] += 1
            if ended == "silent" or ended.startswith("traceback"):
                wrong.append(f"{key}, mutation {turn}: {ended}")
            kind.file.write_bytes(before)
    counts = {key: dict(counter) for key, counter in outcomes.items()}
    return {"mutations": count, "outcomes": counts, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), of=" ".join(sys.argv[2:]) or "run"), indent=1))
