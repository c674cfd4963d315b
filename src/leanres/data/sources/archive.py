"""Read whole files, of a folder or out of a .tar.gz archive, into memory, with bounds."""

from __future__ import annotations

import contextlib
import gzip
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from leanres.data.sources.source import DataFiles
from leanres.errors import UserError, undamaged
from leanres.io import MIB, content_of, open_data, read_exactly

_FILE = (tarfile.REGTYPE, tarfile.AREGTYPE)
_MAX_MEMBERS = 200  # official archives have at most 13
_MAX_LOOK = 64 * MIB  # to tell what an archive is
_WITHOUT_CONTENT = set(tarfile.SUPPORTED_TYPES) - {*tarfile.REGULAR_TYPES, *tarfile.GNU_TYPES}


def read_archive(
    archive: Path, wanted: Iterable[str], max_file: int, max_bytes: int
) -> dict[str, bytes]:
    """The files of these base names, each below `max_file` bytes; other members are skipped.

    UserError, naming the archive, where it is damaged, or has more than `max_bytes` in all.
    """
    names = set(wanted)
    with (
        undamaged(archive, (tarfile.TarError, EOFError, OSError, zlib.error)),
        open_data(archive, max_bytes) as file,
        gzip.GzipFile(fileobj=file) as stream,
    ):
        return dict(_members(stream, names, max_file, max_bytes))


def read_contents(
    files: DataFiles, wanted: Iterable[str], max_file: int, max_archive: int
) -> tuple[dict[str, bytes], Path]:
    """The content of files, or of those wanted in their archive, by name; and where they are."""
    if files.kind == "archive":
        return read_archive(files.paths[0], wanted, max_file, max_archive), files.paths[0]
    return read_files(files.paths, max_file), files.root


def is_archive_of(path: Path, known: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether a .tar.gz is one of a data set: by its own name, or by files of these base names.

    They are looked for in its first `_MAX_LOOK` bytes.
    """
    if not path.is_file() or not path.name.lower().endswith((".tar.gz", ".tgz")):
        return False
    names = set(wanted)
    with (
        contextlib.suppress(UserError, tarfile.TarError, EOFError, OSError, zlib.error),
        open_data(path, sys.maxsize) as file,
        gzip.GzipFile(fileobj=file) as stream,
    ):
        members = _headers(stream, _MAX_LOOK)
        return path.name in known or any(name in names and is_file for name, is_file, _ in members)
    return path.name in known  # reading it says what is wrong with it


def _members(
    archive: gzip.GzipFile, wanted: set[str], max_file: int, left: int
) -> Iterator[tuple[str, bytes]]:
    """Base name and content of the wanted files of a tar archive. TarError where it is damaged."""
    for name, is_file, size in _headers(archive, left):
        if name in wanted and is_file and size < max_file:
            yield name, read_exactly(archive, size).tobytes()


def _headers(archive: gzip.GzipFile, left: int) -> Iterator[tuple[str, bool, int]]:
    """Base name, whether it is a file, and bytes of each member; its content may be read then.

    `tarfile` itself follows chains of headers and reads names of gigabytes; here a header is 512
    bytes, and what extends it (a long name, a sparse map) is skipped like a folder or link.
    TarError where the archive is damaged, or has more than `left` bytes.
    """
    for _ in range(_MAX_MEMBERS):
        header = archive.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.type in _WITHOUT_CONTENT:
            continue
        if member.size < 0:
            raise tarfile.ReadError("it has a member of less than no bytes")
        end = archive.tell() + member.size
        yield member.name.rsplit("/", 1)[-1], member.type in _FILE, member.size
        left -= member.size
        if left < 0:
            raise tarfile.ReadError("it has more bytes than fit")
        _skip(archive, end - archive.tell())
        archive.read(-member.size % tarfile.BLOCKSIZE)
    raise tarfile.ReadError(f"it has more than {_MAX_MEMBERS} members")


def _skip(archive: gzip.GzipFile, size: int) -> None:
    for start in range(0, size, MIB):
        read_exactly(archive, min(MIB, size - start))


def read_files(paths: Iterable[Path], max_file: int) -> dict[str, bytes]:
    """The content of those that exist, by name. UserError for one that cannot be read."""
    try:
        contents: dict[str, bytes] = {}
        for path in (path for path in paths if path.exists()):
            with open_data(path, max_file) as file:
                contents[path.name] = content_of(file, max_file)
        return contents
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
