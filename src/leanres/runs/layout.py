"""The files of a run folder: their names, what is in them, and how they are read back."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.io import CheckpointError, write_bytes
from leanres.training.loop import Row
from leanres.runs.younger import completed

INFO, METRICS, TIMES, TABLE = "run.json", "metrics.jsonl", "times.jsonl", "metrics.csv"
CHECKPOINTS, PREDICTIONS = "checkpoint", "predictions.parquet"
LOCK = ".lock"


class Lock:
    """Holds a run folder against other processes until it is released, dropped, or killed.

    UserError where another process holds it. A file system without locks is used without.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        with contextlib.suppress(FileNotFoundError, PermissionError):
            self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            self._take(folder)

    def _take(self, folder: Path) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{folder} is in use: another process is training there; wait for it or stop it"
            ) from None
        except OSError:
            pass

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = release


def read_info(folder: Path) -> dict[str, Any]:
    """The content of run.json; UserError where the folder is no run."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: it has no {INFO}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INFO} is damaged: {error}") from None
    if not isinstance(info, dict):
        raise CheckpointError(f"{folder / INFO} is damaged: not a JSON object")
    for part, keys in _NEEDED.items():
        for key in keys:
            if not isinstance(info.get(part), dict) or key not in info[part]:
                raise CheckpointError(f"{folder / INFO} is damaged: it lacks {part}.{key}")
    return info | {"recipe": completed(info["recipe"])}


_NEEDED = {
    "recipe": ("model",),
    "preprocess": ("size",),
    "data": ("name", "source", "fingerprints"),
    "hardware": ("device", "precision", "compiled", "threads"),
}


def json_lines(rows: list[Row]) -> bytes:
    """One JSON object a line; ValueError for a number that JSON has not."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def csv_table(history: list[Row], times: list[Row]) -> bytes:
    """The metric rows with each epoch's times beside them."""
    by_epoch = {t["epoch"]: t for t in times}
    rows = [row | by_epoch.get(row["epoch"], {}) for row in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_times(path: Path) -> list[Row]:
    """The rows of times.jsonl; none where it is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if {"step", "seconds"} <= row.keys()]
    except (OSError, ValueError, AttributeError):
        return []  # timings are for people; without them a run goes on all the same


def write_predictions(path: Path, logits: Tensor, split: Split) -> None:
    """A parquet table: index, label, predicted, confidence and one probability per class."""
    probs = logits.softmax(1).numpy().astype(np.float32)
    columns = {
        "index": np.arange(len(probs)),
        "label": split.labels.cpu().numpy(),
        "predicted": probs.argmax(1),
        "confidence": probs.max(1),
    } | {f"p_{name}": probs[:, k] for k, name in enumerate(split.classes)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def fingerprints(d: Dataset) -> dict[str, str | None]:
    """What identifies each split, and the order of the training images."""
    named = {"train": d.train, "val": d.val, "test": d.test}
    prints = {name: split.fingerprint if split else None for name, split in named.items()}
    # Batches are drawn by position, so exactness needs the order, which a fingerprint leaves out.
    return prints | {"order": hashlib.sha256(d.train.digests.tobytes()).hexdigest()}


def check_data(folder: Path, info: Row, dataset: Dataset) -> bool:
    """Whether the images come in the order in which the run in `folder` met them, too.

    UserError where they are others than run.json names.
    """
    now, then = fingerprints(dataset), info["data"]["fingerprints"]
    if any(now.get(name) != digest for name, digest in then.items() if name != "order"):
        raise UserError(
            f"{folder} was trained on other data (fingerprints {then}, now {now}): give the same"
            " with --data and --path, or another folder"
        )
    return bool(now["order"] == then.get("order"))


def commit() -> str | None:
    """The commit of the checkout that this code runs from, "+changes" if it was edited."""
    package = Path(__file__).parents[1]
    git = ["git", "-C", str(package)]
    try:
        words = (
            ["ls-files", "--error-unmatch", "__init__.py"],  # fails where it is installed
            ["rev-parse", "--short=12", "HEAD"],
            ["status", "--porcelain", "--", "."],
        )
        _, head, changes = (
            subprocess.run(
                [*git, *w], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for w in words
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+changes" if changes.strip() else "")
