"""Files that are whole or absent, and the error for one that must not be trusted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from leanres.errors import UserError


class CheckpointError(UserError):
    """A file of a run that cannot be written, or must not be trusted; names file and reason."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent: temporary name, fsync, rename."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
