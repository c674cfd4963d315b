"""Files: atomic writes, locks against other processes, the cache folder, values as TOML."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from leanres.errors import UserError

LOCK = ".lock"  # of a folder
LOCK_WAIT_S = 30.0  # a ledger entry is read, changed and written in milliseconds


class CheckpointError(UserError):
    """A file of a run that cannot be written, or must not be trusted; names file and reason."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename. CheckpointError where that fails."""
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
    """Holds a folder against other processes until it is released, dropped, or killed.

    UserError where another process holds it. Where files cannot be locked (a read-only folder, a
    file system without locks) there is no protection, and no error.
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
        """Let others have the folder."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold one file against other processes while it is read, changed and written.

    UserError where another process holds it for 30 seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_WAIT_S):
            yield
    except Timeout:
        raise UserError(f"{path} is in use by another process: wait for it or stop it") from None


def cache_folder() -> Path:
    """`$LEANRES_CACHE`, or `leanres` in the user's cache folder."""
    if own := os.environ.get("LEANRES_CACHE"):
        return Path(own).expanduser()
    return user_cache_path("leanres", appauthor=False)


def toml_value(value: Any) -> str:
    """A number, text, list or dict as TOML writes it after a key's equals sign."""
    import tomlkit

    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return str(tomlkit.item(value).as_string())
