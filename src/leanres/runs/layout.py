"""The files of a run folder: their names, their content, and how they are read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

from leanres.data.sources import Progress, load_data
from leanres.data.split import Dataset
from leanres.errors import UserError, first_line
from leanres.io import LOCK, PARTIAL, parse_json, read_file
from leanres.runs.manifest import MANIFEST
from leanres.training.loop import MetricsRow

HISTORY, TIMES, TABLE = "metrics.jsonl", "times.jsonl", "metrics.csv"
CHECKPOINTS, PREDICTIONS = "checkpoint", "predictions.parquet"
IMAGES = "images.parquet"
MADE_FIRST = {MANIFEST, IMAGES, CHECKPOINTS, HISTORY, TIMES, TABLE}  # run.json comes after these


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already, with a UserError.

    What a process left that was killed while it made the folder is nothing: `clear` deletes it.
    """
    if folder.exists() and (not folder.is_dir() or not is_unmade(folder)):
        raise UserError(
            f"{folder} exists already: `leanres resume {folder}` continues it, --out names another"
            " folder"
        )


def is_unmade(folder: Path) -> bool:
    """Whether a folder is empty, or one whose making was cut off: a manifest, but no run.json."""
    names = {f.name for f in _entries(folder) if f.suffix != PARTIAL} - {LOCK}
    return not names or (MANIFEST in names and names <= MADE_FIRST)


def clear(folder: Path) -> None:
    """Delete what an earlier making of a run folder left, but the lock."""
    for path in _entries(folder):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        except OSError as error:
            raise UserError(
                f"cannot delete {path}: {error.strerror}; name another folder"
            ) from None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; name another folder") from None


def json_lines(rows: list[MetricsRow]) -> bytes:
    """One JSON object a line; ValueError for a number that JSON has not."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def with_times(history: list[MetricsRow], times: list[MetricsRow]) -> list[MetricsRow]:
    """The row of each epoch with its times."""
    by_epoch = {t["epoch"]: t for t in times}
    return [row | by_epoch.get(row["epoch"], {}) for row in history]


def csv_table(rows: list[MetricsRow]) -> bytes:
    """The rows as CSV, one column per key."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_history(folder: Path) -> tuple[list[MetricsRow], int]:
    """The row of each finished epoch, and the number of damaged lines; ([], 0) without a file."""
    try:
        return _read_rows(folder / HISTORY, ("epoch",))
    except OSError:
        return [], 0


def read_times(folder: Path) -> list[MetricsRow]:
    """The times of each finished epoch; damaged lines are left out: times are informative only.

    UserError where the disk fails: a run that went on without them would lose them.
    """
    try:
        return _read_rows(folder / TIMES, ("epoch", "step", "seconds"))[0]
    except OSError as error:
        raise UserError(f"{folder / TIMES} cannot be read: {first_line(error)}") from None


def _read_rows(path: Path, needed: tuple[str, ...]) -> tuple[list[MetricsRow], int]:
    if not path.exists():
        return [], 0
    lines = [line for line in read_file(path).splitlines() if line.strip()]
    rows = [row for row in map(_parse_row, lines) if all(is_number(row.get(k)) for k in needed)]
    return rows, len(lines) - len(rows)


def _parse_row(line: bytes) -> MetricsRow:
    """The JSON object of a line; an empty one where it is damaged."""
    try:
        row = parse_json(line)
    except ValueError:  # includes UnicodeDecodeError
        return {}
    return row if isinstance(row, dict) else {}


def is_number(value: object) -> bool:
    """Whether this is a finite number; a bool is none."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def fingerprints(d: Dataset) -> dict[str, str | None]:
    """A fingerprint of each split, and of the order of the training images."""
    named = {"train": d.train, "val": d.val, "test": d.test}
    prints = {name: split.fingerprint if split else None for name, split in named.items()}
    # Batches are drawn by position: an exact resume needs the order, which a fingerprint ignores.
    return prints | {"order": hashlib.sha256(d.train.digests.tobytes()).hexdigest()}


def exactness_notes(before: dict[str, Any], now: dict[str, Any], same_order: bool) -> list[str]:
    """What makes a resumed run differ in the last bits from the uninterrupted one, in one line."""
    keys = ("kernels", "precision", "compiled", "threads", "torch", "device")
    pairs = [(key, before.get(key), now[key]) for key in keys]
    pairs.append(("reduction", *(facts.get("reduction", "exact") for facts in (before, now))))
    changed = [f"{key} changed from {old} to {new}" for key, old, new in pairs if old != new]
    changed += [] if same_order else ["the images come in another order"]
    if not changed:
        return []
    inexact = "results will not be bit-identical to an uninterrupted run"
    return [f"{inexact}: {', '.join(changed)}"]


def load_data_of(
    info: dict[str, Any],
    name: str | None = None,
    download: bool = True,
    progress: Progress = None,
) -> Dataset:
    """The data that run.json's content names, or what is given in its place."""
    known = info["origin"]
    size, channels, whites = known.get("size"), known.get("channels"), {}
    if "preprocess" in info:
        begun = info["preprocess"]
        size, channels, whites = begun["size"], len(begun["mean"]), begun.get("whites", {})
    path = None
    if name is None:
        name = known.get("data") or info["data"]["name"]
        kept = known.get("path") or info.get("data", {}).get("source")
        path = Path(kept) if kept and Path(kept).exists() else None
    own = {"size": size, "channels": channels, "whites": whites}
    return load_data(name, path, **own, download=download, progress=progress)


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
