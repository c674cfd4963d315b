"""Download one file with a bounded wait and a checksum.

urllib alone has no bound on the time until the first byte, and a training must not hang where a
firewall drops the packets.
"""

from __future__ import annotations

import hashlib
import os
import queue
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from leanres.data.sources.source import Progress
from leanres.errors import UserError, first_line

Piece = tuple[bytes, int]  # some bytes of a file, and the length of the whole; 0: not known


def download(
    target: Path, url: str, sha256: str, *, limit_s: float = 10, progress: Progress = None
) -> Path:
    """Download `url` to `target`, which appears only when it is complete and verified. -> target.

    UserError if nothing arrives for `limit_s` seconds (name look-up included), if the stream breaks
    off, if the digest differs, or if the disk is full.
    """
    digest, done, total = hashlib.sha256(), 0, 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".part", target.name, target.parent) as folder:
            part = Path(folder) / target.name
            with part.open("wb") as file:
                for content, total in _pieces(url, limit_s):
                    file.write(content)
                    digest.update(content)
                    done += len(content)
                    if progress:
                        progress(f"downloading {url.rpartition('/')[2]}", done, total)
            if done < total:
                raise UserError(f"{url} broke off after {done:,} of {total:,} bytes; try again")
            if (found := digest.hexdigest()) != sha256:
                raise UserError(f"{url} gave a file with sha256 {found}, not {sha256}; try later")
            os.replace(part, target)
    except OSError as error:
        raise UserError(f"cannot store {target}: {first_line(error)}") from None
    return target


def _pieces(url: str, limit_s: float) -> Iterator[Piece]:
    """The content of `url` as it arrives; UserError if nothing does for `limit_s` seconds.

    A socket's timeout covers neither the name look-up nor several addresses in a row. So a daemon
    thread reads, and this thread stops waiting for it.
    """
    pieces: queue.Queue[Piece | Exception] = queue.Queue()
    threading.Thread(target=_read, args=(url, limit_s, pieces), daemon=True).start()
    while True:
        try:
            piece = pieces.get(timeout=limit_s)
        except queue.Empty:
            piece = TimeoutError(f"no answer within {limit_s:g} s")
        if isinstance(piece, Exception):
            raise UserError(f"cannot download {url}: {first_line(piece)}; try again") from None
        if not piece[0]:
            return
        yield piece


def _read(url: str, limit_s: float, pieces: queue.Queue[Piece | Exception]) -> None:
    """Put the content of `url` into `pieces`, then an empty piece, or what went wrong."""
    try:
        with urllib.request.urlopen(url, timeout=limit_s) as response:
            total, content = int(response.headers.get("Content-Length") or 0), b"-"
            while content:
                content = response.read1(1 << 18)
                pieces.put((content, total))
    except Exception as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # an HTTPError is an open response too
        pieces.put(error)
