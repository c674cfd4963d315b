"""Every file-system call of a run's life fails, or the process is killed at it: nothing is lost.

A tiny run is created, trained, stopped after its first epoch, resumed and finished. Its calls of
open, write, fsync, rename, mkdir, unlink, rmdir and listdir are counted. Then the life is lived
again for each call and each fault: SIGKILL at the call (a write is half done), ENOSPC, EIO. After
it the command that a user would give, `train` or else `resume`, has to end with the same weights,
optimizer state, metrics and predictions as the undisturbed life.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from forks import OK, TOLD, Outcome, fork
from progress import shown

from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.resnet import ResNetConfig
from leanres.runs import run as runs
from leanres.runs.fit import complete, resume
from leanres.training.device import CPU
from leanres.training.recipe import Recipe, from_dict
from leanres.training.recipes import RECIPES

FAULTS = ("SIGKILL", "ENOSPC", "EIO")


def recipe() -> Recipe:
    """Two epochs of a network of 2,000 parameters."""
    settings = {"model": ResNetConfig((8,), (1,)), "epochs": 2, "batch_size": 40, "val": 20}
    return from_dict(settings | {"precision": "float32", "ema": 0.9}, RECIPES["plain-sgd"])


def tiny_data() -> Dataset:
    """100 digits to train on and 40 to test."""
    whole = load_data("digits", size=8)
    assert whole.test is not None
    train, test = whole.train.subset(range(100)), whole.test.subset(range(40))
    return Dataset("digits", train, None, test, (), whole.source)


class Disk:
    """Counts the file-system calls on a folder; at the chosen one it fails or kills the process."""

    def __init__(self, folder: Path, at: int = -1, fault: str = "") -> None:
        self.folder, self.at, self.fault, self.count = str(folder), at, fault, 0

    def install(self) -> None:
        """Replace Python's own calls, in a process that is forked for it."""
        for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "listdir", "open"):
            setattr(os, name, partial(self.call, getattr(os, name)))
        opened = builtins.open
        builtins.open = io.open = partial(self.open_file, opened)  # type: ignore[assignment]

    def is_ours(self, path: Any) -> bool:
        if isinstance(path, int):  # fsync of a file, or a folder that is deleted by its handle
            return True
        return str(path).startswith(self.folder) or not os.path.isabs(path)

    def call(self, function: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_ours(path):
            self.step()
        return function(path, *args, **kwargs)

    def open_file(self, opened: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        file = self.call(opened, path, *args, **kwargs)
        mode = args[0] if args else kwargs.get("mode", "r")
        if self.is_ours(path) and set("wax+") & set(mode):
            return Writing(file, self)
        return file

    def step(self, before_kill: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count - 1 != self.at:
            return
        if self.fault == "SIGKILL":
            before_kill()
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code))


class Writing:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._disk.step(half)
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()


def live(folder: Path, data: Dataset) -> None:
    """What a user does: start the run, or continue it where the folder is taken; to its end."""
    device = CPU("cpu", "float32", False)
    try:
        run = runs.create(folder, recipe(), data, device, {"data": "digits", "path": None})
    except UserError as error:
        if "exists already" not in str(error):
            raise
        resume(folder, dataset=data, device=device)
        return
    if not complete(run, until_epoch=1):
        resume(folder, dataset=data, device=device)


def disturbed(folder: Path, data: Dataset, at: int, fault: str, counter: Path) -> None:
    """A life on a disk that fails at one call; without a fault, the number of its calls."""
    disk = Disk(folder, at, fault)
    disk.install()
    live(folder, data)
    if not fault:
        counter.write_text(str(disk.count))


def content(folder: Path) -> dict[str, str]:
    """A digest of everything that must be the same: weights, newest state, metrics, predictions."""
    newest = max((folder / "checkpoint").glob("[0-9]*"))
    names = ("model.safetensors", "metrics.jsonl", "predictions.parquet")
    files = {name: folder / name for name in names} | {"state": newest / "state.safetensors"}
    digests = {k: hashlib.sha256(f.read_bytes()).hexdigest() for k, f in files.items()}
    result = json.loads((folder / "run.json").read_text())["result"]
    table = (folder / "metrics.csv").read_text().splitlines()
    rows = [line.split(",")[0] for line in table[1:]]
    times = (folder / "times.jsonl").read_text().count("\n")
    return digests | {"accuracy": str(result["accuracy"]), "table": str(rows), "times": str(times)}


def judge(folder: Path, first: Outcome, again: Outcome, right: dict[str, str]) -> str:
    """What is wrong after a fault and the command given again; "" where nothing is."""
    if first.code not in (OK, TOLD, -signal.SIGKILL):
        return f"a traceback at the fault: {first.message.splitlines()[-1]}"
    if again.code != OK:
        return f"stuck: {again.message.splitlines()[-1]}"
    found = content(folder)
    differs = [name for name in right if found.get(name) != right[name]]
    left = [p.name for p in folder.rglob("*.partial")]
    return f"lost or other: {differs}" if differs else f"left behind: {left}" if left else ""


def main(sample: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The faults (all, or a sample), how the lives ended, and what went wrong."""
    data, wrong, ends = tiny_data(), [], Counter[str]()
    with TemporaryDirectory() as name:
        root = Path(name).resolve()
        live(root / "right", data)  # here, so that the forks find everything imported
        right = content(root / "right")
        counter = root / "count"
        counted = fork(partial(disturbed, root / "counted", data, -1, "", counter))
        assert counted.code == OK, counted.message
        assert content(root / "counted") == right
        cases = [(at, fault) for at in range(int(counter.read_text())) for fault in FAULTS]
        calls = len(cases) // len(FAULTS)
        if sample is not None:
            cases = random.Random(seed).sample(cases, sample)
        for at, fault in shown(cases, "file system"):
            folder = root / "run"
            first = fork(partial(disturbed, folder, data, at, fault, counter))
            again = fork(partial(live, folder, data))
            ends[{OK: "finished all the same", TOLD: "one line"}.get(first.code, "killed")] += 1
            if reason := judge(folder, first, again, right):
                wrong.append(f"{fault} at call {at}: {reason}")
            shutil.rmtree(folder, ignore_errors=True)
    return {"calls": calls, "faults": len(cases), "ends": dict(ends), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
