"""Download one file with a bounded wait and a checksum.

urllib alone has no bound on the time until the first byte; a training that is to start now must
not hang on a network without an exit.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from leanres.data.sources.source import Progress
from leanres.errors import UserError, first_line


def download(
    target: Path, url: str, sha256: str, *, limit_s: float = 10, progress: Progress = None
) -> Path:
    """Download `url` to `target`, which appears only when it is complete and verified. -> target.

    UserError if the first byte takes more than `limit_s` seconds (name look-up included), if the
    stream then stalls that long or breaks off, if the digest differs, or if the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".part", target.name, target.parent) as folder:
            part = Path(folder) / target.name
            with part.open("wb") as file:
                found = _receive(file, url, limit_s, progress)
            if found != sha256:
                raise UserError(f"{url} gave a file with sha256 {found}, not {sha256}; try later")
            os.replace(part, target)
    except OSError as error:
        raise UserError(f"cannot store {target}: {first_line(error)}") from None
    return target


def _receive(file: BinaryIO, url: str, limit_s: float, progress: Progress) -> str:
    """Write the content of `url` to `file`. -> its sha256."""
    response, chunk = _first_bytes(url, limit_s)
    digest, done = hashlib.sha256(), 0
    total = int(response.headers.get("Content-Length") or 0)
    with response:
        while chunk:
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"downloading {url.rpartition('/')[2]}", done, total)
            try:
                chunk = response.read1(1 << 18)
            except (OSError, http.client.HTTPException):
                total, chunk = max(total, done + 1), b""  # a stall counts as a broken stream
    if done < total:
        raise UserError(f"{url} broke off after {done:,} of {total:,} bytes; try again")
    return digest.hexdigest()


def _first_bytes(url: str, limit_s: float) -> tuple[http.client.HTTPResponse, bytes]:
    """The open response and its first bytes, or a UserError after at most `limit_s` seconds.

    A socket's timeout covers neither the name look-up nor several addresses in a row. So a daemon
    thread connects, and this thread stops waiting for it.
    """
    answers: queue.Queue[tuple[http.client.HTTPResponse, bytes] | Exception] = queue.Queue()

    def connect() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=limit_s)
            answers.put((response, response.read1(1 << 14)))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # an HTTPError is an open response too
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except queue.Empty:
        answer = TimeoutError(f"no answer within {limit_s:g} s")
    if isinstance(answer, Exception):
        raise UserError(f"cannot download {url}: {first_line(answer)}") from None
    return answer
