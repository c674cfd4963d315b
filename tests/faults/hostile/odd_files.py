"""Pipes, devices, folders, sockets, loops and a file of 1 TB in the place of each kind of file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.cases import Case, run_command, told
from leanres.data.image_files import read_image
from leanres.data.sources.cifar10_formats import CifarFiles, read_cifar10
from leanres.io import open_file, parse_json, read_file
from leanres.runs.weights import load_classifier
from leanres.training.recipes import load_recipe


def odd_files(folder: Path) -> Iterator[Case]:
    """What is no regular file, or far too large, in the place of each kind of file."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "random").symlink_to("/dev/urandom")
    (folder / "terminal").symlink_to("/dev/ptmx")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    kinds = ["fifo", "folder", "loop", "dangling", "zero", "random", "terminal", "sparse", "socket"]
    runs = folder / "runs" / "one"
    runs.mkdir(parents=True)
    batches = folder / "batches"
    batches.mkdir()

    def as_file(kind: str, place: Path) -> Path:
        place.unlink(missing_ok=True)
        place.symlink_to(folder / kind)
        return place

    def commands(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        command = run_command
        recipe, data = folder / "r.toml", folder / "data"
        yield "recipe", lambda: command("recipes", str(as_file(kind, recipe)))
        yield "recipe file", lambda: load_recipe(str(as_file(kind, recipe)))
        yield "plan", lambda: command("campaign", str(as_file(kind, recipe)))
        yield "weights", lambda: load_classifier(folder / kind)
        yield "predict", lambda: command("predict", str(folder / kind), str(folder / kind))
        yield "image", lambda: read_image(folder / kind, 32)
        yield "run.json", lambda: command("report", str(as_file(kind, runs / "run.json").parent))
        yield "resume", lambda: command("resume", str(as_file(kind, runs / "run.json").parent))
        yield "diff", lambda: command("runs", "diff", str(folder / kind), str(folder / kind))
        yield "batch", lambda: batch(kind, "data_batch_1", "python")
        yield "archive", lambda: batch(kind, "cifar-10-python.tar.gz", "archive")
        yield "shard", lambda: batch(kind, "train-00000-of-00001.parquet", "parquet")
        yield "data", lambda: command("data", "--data", str(data / kind))
        yield "any file", lambda: open_file(folder / kind, 1000)
        yield "any JSON", lambda: parse_json(read_file(folder / kind))

    def batch(kind: str, name: str, form: str) -> Any:
        return read_cifar10(CifarFiles(form, batches, (as_file(kind, batches / name),)))

    for kind in kinds:
        for name, read in commands(kind):
            yield Case("odd file", f"{kind} as {name}", told(read))
