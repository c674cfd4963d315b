"""Files: bounded reads, atomic writes, locks between processes, the cache folder, TOML."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from leanres.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pyarrow import ChunkedArray, Table
    from pyarrow.parquet import ParquetFile

LOCK = ".lock"  # the file in a folder that `Lock` holds
PARTIAL = ".partial"  # ends the name of a file that is not whole yet
LOCK_WAIT_S = 30.0  # longer than what is locked usually takes
MIB = 2**20
MOST_DEFLATED = 1100  # bytes of one byte of zlib, and a few: it expands to at most 1,032
MAX_TEXT = 64 * MIB  # a run's JSON files; a recipe's and a plan's TOML has less than `MAX_TOML`
MAX_TOML, MAX_DOTS = MIB // 4, 200  # its parser takes memory by the square of a key's parts
MAX_DEPTH = 100  # of JSON and TOML


class CheckpointError(UserError):
    """A file of a run that cannot be written or is damaged; the message names file and reason."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[BufferedWriter]:
    """A file to write to, which is there as a whole, and on the disk, once the body has ended.

    CheckpointError if that fails.
    """
    if not path.name:  # "." and "/"
        raise CheckpointError(f"cannot write {path}: it is a folder; name a file in it")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename. CheckpointError if that fails."""
    with written(path) as file:
        file.write(content)


def make_folder(path: Path) -> None:
    """Make a folder and those above it. UserError where something else is in its place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        is_link = path.is_symlink() and not path.exists()
        what = "a link to nothing" if is_link else "a file" if path.exists() else "within a file"
        raise UserError(f"{path} is {what}: name a folder") from None


def remove_partial(folder: Path) -> None:
    """Delete what killed writers left in a folder. Lock it first: a living one may be at work."""
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink()


def open_file(path: Path, max_bytes: int) -> BufferedReader:
    """Open a file that came from outside, to read it; its content is at most `max_bytes` long.

    UserError for a larger file, or one that is not a regular file (a pipe or device may block or
    never end); OSError where it cannot be opened.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  # the caller closes it
    about = os.fstat(file.fileno())
    if stat.S_ISREG(about.st_mode) and about.st_size <= max_bytes:
        return file
    file.close()
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path} is not a regular file: give one, not a pipe or a device")
    size, most = (f"{count / MIB:,.1f} MiB" for count in (about.st_size, max_bytes))
    raise UserError(f"{path} has {size}, more than the {most} allowed: give another file")


def open_data(path: Path, max_bytes: int) -> BufferedReader:
    """Open a file of images, labels or weights as `open_file` does.

    UserError, too, for what only stands for the file, as a Git-LFS pointer does.
    """
    file = open_file(path, max_bytes)
    what = placeholder(file.read(256))
    file.seek(0)
    if what:
        file.close()
        raise UserError(f"{path} is {what}")
    return file


def placeholder(head: bytes) -> str:
    """What stands in a file's place, by its first bytes, and what to do; empty if it is a file."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself: run git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not the file itself: download it again"
    return ""


class Readable(Protocol):
    """What bytes can be read from: a file, or a member of an archive."""

    def read(self, size: int = ..., /) -> bytes: ...


def read_exactly(stream: Readable, size: int) -> NDArray[np.uint8]:
    """The next `size` bytes of a stream, read in pieces. EOFError where there are fewer.

    Memory is taken as it is filled: a size that a damaged header claims costs nothing.
    """
    import numpy as np

    content, done = np.empty(size, np.uint8), 0
    while done < size:
        piece = stream.read(min(size - done, MIB))
        if not piece:
            raise EOFError("it ends too early")
        content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer


def read_file(path: Path, max_bytes: int = MAX_TEXT) -> bytes:
    """The content of a file, opened as `open_file` does."""
    with open_file(path, max_bytes) as file:
        return content_of(file, max_bytes)


def content_of(file: BufferedReader, max_bytes: int) -> bytes:
    """The first `max_bytes` of an open file.

    Python allocates all that is asked for before it reads: that is the file's size here, and blocks
    for what is beyond it, as files of /proc have more than they say.
    """
    left = max_bytes
    pieces, wanted = [], min(os.fstat(file.fileno()).st_size + 1, left)
    while piece := file.read(wanted):
        pieces.append(piece)
        left -= len(piece)
        wanted = min(MIB, left)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def file_digest(path: Path, max_bytes: int, algorithm: str = "sha256") -> str:
    """The checksum of a file's content, in hexadecimal; it is opened as `open_file` does."""
    with open_file(path, max_bytes) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. ValueError where it is none, or too deep."""
    return _shallow(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. ValueError where it is none, or too deep."""
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"a line has more than {MAX_DOTS} dots")
    table: dict[str, Any] = _shallow(tomllib.loads, text)
    return table


def _shallow(parse: Callable[[Any], Any], text: bytes | str) -> Any:
    """What `parse` makes of a text. ValueError where it is so deep that printing it would fail."""
    level = None
    with contextlib.suppress(RecursionError):
        value = parse(text)
        level = [value] if isinstance(value, dict | list) else []
        for _ in range(MAX_DEPTH):
            inner = (item.values() if isinstance(item, dict) else item for item in level)
            level = [v for values in inner for v in values if isinstance(v, dict | list)]
    if level != []:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file. UserError where it cannot be read, or is none."""
    try:
        return parse_toml(read_file(path, MAX_TOML).decode())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {first_line(error)}") from None


def parquet_file(file: BufferedReader) -> ParquetFile:
    """An open parquet file whose columns of text are read as dictionaries.

    So they are in the file: 2 KB can hold a text of 20 MB that every row refers to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    texts = [field.name for field in schema if any(is_(field.type) for is_ in is_text)]
    return pq.ParquetFile(file, read_dictionary=texts)


def column_values(column: ChunkedArray) -> list[Any]:
    """The values of a column, where equal texts are one object."""
    import pyarrow as pa

    values = list[Any]()
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            known = chunk.dictionary.to_pylist()
            values += [None if i is None else known[i] for i in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def read_parquet(path: Path, max_bytes: int, columns: list[str] | None = None) -> Table:
    """The table of a parquet file, which takes at most `max_bytes` in the file and in memory.

    UserError for a larger one; OSError or ArrowException for a damaged one.
    """
    with open_data(path, max_bytes) as file, parquet_file(file) as opened:
        about = opened.metadata
        groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
        if sum(groups) > max_bytes or about.num_rows * about.num_columns > max_bytes:
            raise UserError(f"{path} says it holds {sum(groups):,} bytes: give another file")
        return opened.read(columns)


def one_line(text: str) -> str:
    """A name in which no character ends the line or controls a terminal; "?" stands for those.

    Bytes of a name that is not UTF-8 (Python's lone surrogates) are kept, as `printable` does not.
    """
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "?" for c in text)


def csv_text(text: str) -> str:
    """A name as a cell of a CSV file: one line, which no spreadsheet takes for a formula."""
    text = one_line(text)
    is_formula = text.startswith(("=", "+", "-", "@")) and not _is_number(text)
    return f"'{text}" if is_formula else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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


def expanded(path: str | Path) -> Path:
    """A path whose `~` is the home folder. UserError where there is none, as in a container."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder is known here; give the path without ~") from None


def cache_folder() -> Path:
    """`$LEANRES_CACHE`, or else `leanres` in the user's cache folder of the platform.

    Where that cannot be created, as without a home folder, it is a temporary one; a note says so.
    """
    if own := os.environ.get("LEANRES_CACHE"):
        return expanded(own)
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        place = user_cache_path("leanres", appauthor=False)
        place.mkdir(parents=True, exist_ok=True)
        return place
    return _temporary_cache()


@cache
def _temporary_cache() -> Path:
    """A folder of this user alone: kernels are loaded from it. The next command finds it again.

    Libraries that would look for a home folder, or warn, use it too.
    """
    owner = os.getuid() if hasattr(os, "getuid") else 0  # Windows' temporary folder is the user's
    place = Path(tempfile.gettempdir()) / f"leanres-{owner}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    about = place.lstat()
    is_private = stat.S_ISDIR(about.st_mode) and about.st_uid == owner
    if not is_private or (os.name == "posix" and about.st_mode & 0o077):
        place = Path(tempfile.mkdtemp(prefix="leanres-"))
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ.setdefault(name, str(place))
    note = "note: no home folder to keep a cache in: %s is used, or what LEANRES_CACHE names"
    logging.getLogger("leanres").warning(note, place)
    return place


def toml_value(value: Any) -> str:
    """A number, string, list or dict in TOML, as it is written after `key = `."""
    import tomlkit

    array = tomlkit.array()  # an element of an array is always on one line
    array.append(value)
    return array.as_string()[1:-1]
