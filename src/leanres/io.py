"""Files: atomic writes, locks between processes, the cache folder, values as TOML."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from leanres.errors import UserError

LOCK = ".lock"  # the file in a folder that `Lock` holds
LOCK_WAIT_S = 30.0  # for `locked`, whose holders take milliseconds


class CheckpointError(UserError):
    """A file of a run that cannot be written or is damaged; the message names file and reason."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename. CheckpointError if that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


class Lock:
    """Locks a folder against other processes until it is released or the process ends.

    `use` says in the error message what the folder is used for. UserError if it is locked already.
    Where files cannot be locked (a read-only folder, a file system without locks) it has no effect.
    """

    def __init__(self, folder: Path, use: str = "training") -> None:
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{folder} is in use: another process is {use} there; wait for it or stop it"
            ) from None
        except (OSError, NotImplementedError):
            pass

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock one file against other processes while it is read, changed and written.

    UserError if another process holds it for more than 30 seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_WAIT_S):
            yield
    except Timeout:
        raise UserError(f"{path} is in use by another process: wait for it or stop it") from None


def cache_folder() -> Path:
    """`$LEANRES_CACHE`, or else `leanres` in the user's cache folder of the platform."""
    if own := os.environ.get("LEANRES_CACHE"):
        return Path(own).expanduser()
    return user_cache_path("leanres", appauthor=False)


def toml_value(value: Any) -> str:
    """A number, string, list or dict in TOML, as it is written after `key = `."""
    import tomlkit

    array = tomlkit.array()  # an element of an array is always on one line
    array.append(value)
    return array.as_string()[1:-1]
