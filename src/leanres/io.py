"""Files: atomic writes, locks between processes, the cache folder, values as TOML."""

from __future__ import annotations

import contextlib
import os
import secrets
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from leanres.errors import UserError

LOCK = ".lock"  # the file in a folder that `Lock` holds
PARTIAL = ".partial"  # ends the name of a file that is not whole yet
LOCK_WAIT_S = 30.0  # longer than what is locked usually takes


class CheckpointError(UserError):
    """A file of a run that cannot be written or is damaged; the message names file and reason."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename. CheckpointError if that fails."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
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


def remove_partial(folder: Path) -> None:
    """Delete what killed writers left in a folder. Lock it first: a living one may be at work."""
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink()


class InUseError(UserError):
    """Another process holds the lock of a folder or file."""


class Lock:
    """Locks a run folder against other processes until it is released or the process ends.

    InUseError if another process still holds it after `wait_s` seconds. Where files cannot be
    locked (a read-only folder, a file system without locks) it has no effect.
    """

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        self._lock = FileLock(folder / LOCK, timeout=wait_s, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise InUseError(
                f"{folder} is in use: another process is training there; wait for it or stop it"
            ) from None
        except (OSError, NotImplementedError):
            pass

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Lock one file against other processes while it is read, changed and written.

    InUseError if another process still holds it after `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_file(path), timeout=wait_s):
            yield
    except Timeout:
        raise InUseError(f"{path} is in use by another process: wait for it or stop it") from None


def lock_file(path: Path) -> Path:
    """The file beside `path` that `locked` locks."""
    return path.with_name(f".{path.name}.lock")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; UserError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


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
