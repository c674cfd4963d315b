"""Two processes write, read and extend the same files: no torn read, no lost row."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leanres.io import locked, write_bytes

SIZE = 200_000  # bytes: more than a page or a buffer


def write(path: Path, letter: bytes, seconds: float, failed: Any) -> None:
    """Write one letter many times, over and over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            write_bytes(path, letter * SIZE)
        except Exception:
            failed.value += 1


def read(path: Path, seconds: float, reads: Any, torn: Any) -> None:
    """Read it, and count what is not one letter, as often as was written."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        content = path.read_bytes()
        reads.value += 1
        torn.value += len(content) != SIZE or len(set(content)) != 1


def extend(path: Path, rows: int, name: str) -> None:
    """Add rows to a JSON list, each in a read-change-write of its own."""
    for i in range(rows):
        with locked(path):
            known = json.loads(path.read_bytes()) if path.exists() else []
            write_bytes(path, json.dumps([*known, f"{name} {i}"]).encode())


def main(seconds: float, rows: int = 50) -> dict[str, Any]:
    """Counts of reads, torn reads, failed writes, and of rows lost of those added."""
    fork = multiprocessing.get_context("fork")
    reads, torn = fork.Value("q", 0), fork.Value("q", 0)
    failed = [fork.Value("q", 0) for _ in "ab"]
    with TemporaryDirectory() as name:
        path, table = Path(name) / "file.bin", Path(name) / "rows.json"
        write_bytes(path, b"a" * SIZE)
        processes = [
            *(
                fork.Process(target=write, args=(path, letter, seconds, count))
                for letter, count in zip((b"a", b"b"), failed, strict=True)
            ),
            fork.Process(target=read, args=(path, seconds, reads, torn)),
            *(fork.Process(target=extend, args=(table, rows, name)) for name in "ab"),
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        kept = len(json.loads(table.read_bytes()))
        left = [p.name for p in Path(name).iterdir() if p.name.endswith(".partial")]
    faults = {
        "torn_reads": torn.value,
        "failed_writes": sum(count.value for count in failed),
        "rows_lost": 2 * rows - kept,
        "left_behind": left,
    }
    wrong = [f"{name}: {found}" for name, found in faults.items() if found]
    return {"reads": reads.value, "rows_added": 2 * rows, **faults, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1])), indent=1))
