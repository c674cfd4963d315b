"""Read whole files, of a folder or out of a .tar.gz archive, into memory, with bounds."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from leanres.errors import UserError, undamaged
from leanres.io import MIB, content_of, open_data, read_exactly

_FILE = (tarfile.REGTYPE, tarfile.AREGTYPE)
_MAX_MEMBERS = 200  # official archives have at most 13
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


def _members(
    archive: gzip.GzipFile, wanted: set[str], max_file: int, left: int
) -> Iterator[tuple[str, bytes]]:
    """Base name and content of the wanted files of a tar archive. TarError where it is damaged.

    `tarfile` itself follows chains of headers and reads names of gigabytes; here a header is 512
    bytes, and what extends it (a long name, a sparse map) is skipped like a folder or link.
    """
    for _ in range(_MAX_MEMBERS):
        header = archive.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.type in _WITHOUT_CONTENT:
            continue
        left -= member.size
        if not 0 <= member.size <= left:
            raise tarfile.ReadError("it has more bytes than fit")
        name, is_file = member.name.rsplit("/", 1)[-1], member.type in _FILE
        if name in wanted and is_file and member.size < max_file:
            yield name, read_exactly(archive, member.size).tobytes()
        else:
            _skip(archive, member.size)
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
