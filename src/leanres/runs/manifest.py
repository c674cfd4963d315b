"""manifest.json: the sha256 of every file of a run folder, so that edited files are reported.

Before a file is written the manifest gets its new digest beside the one it has, and after it the
new one alone: after a kill at any moment each file has one of the digests listed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from leanres.io import MIB, file_digest, parse_json, read_file, write_bytes

MANIFEST = "manifest.json"
MAX_BYTES = 4096 * MIB
Digests = dict[str, list[str]]


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a run folder, each atomically. CheckpointError where one cannot be written."""
    known, new = _read(folder) or {}, {}
    for name, content in contents.items():
        kept = [digest for digest in known.get(name, []) if digest == _digest_of(folder / name)]
        new[name] = [hashlib.sha256(content).hexdigest()]
        known[name] = [*kept, *new[name]]
    _write(folder, known)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    _write(folder, known | new)  # the earlier digests are no longer valid


def _write(folder: Path, files: Digests) -> None:
    text = json.dumps({"files": files, "sha256": _seal(files)}, indent=1)
    write_bytes(folder / MANIFEST, text.encode())


def edited(folder: Path) -> list[str]:
    """A note for each file of a run folder that is not as leanres wrote it; none where all are."""
    known = _read(folder)
    if known is None:
        return [f"{folder / MANIFEST} is missing or was edited: the other files are not checked"]
    changed = [name for name, digests in known.items() if _digest_of(folder / name) not in digests]
    return [
        f"{folder / name} is missing or was edited: it is not as leanres wrote it"
        for name in changed
    ]


def _read(folder: Path) -> Digests | None:
    """The digests in a folder's manifest; None where there is none, or not as it was written."""
    try:
        content = parse_json(read_file(folder / MANIFEST))
        files: Digests = content["files"]
        return files if content["sha256"] == _seal(files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(files: Digests) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    try:
        return file_digest(path, MAX_BYTES)
    except (OSError, ValueError):
        return ""
