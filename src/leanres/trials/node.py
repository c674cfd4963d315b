"""What Ray runs on a machine of the cluster: a look at the shared folder, and a job's process.

It imports no torch: only the job's process, which it starts, needs the memory.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leanres.io import read_file
from leanres.version import __version__

VISIBLE_S = 60.0  # a file that one machine wrote is seen by the others; NFS keeps a "no" for 30 s
LOOK_S = 20.0  # the same for a new name, of which no machine has a "no"
POLL_S = 0.2
DIGESTED = ("run.json", "metrics.jsonl")  # what the caller reads of a run that has ended


@dataclass(frozen=True)
class Look:
    """What a machine answers: its leanres, and whether it shares the folder ("" if so)."""

    host: str
    version: str
    problem: str


@dataclass(frozen=True)
class End:
    """How a job's process ended; `files` are those of its run folder, as `listing` has them."""

    code: int
    line: str
    seconds: float
    files: Mapping[str, str]


def look(token: Path, text: bytes, answer: str) -> Look:
    """Read the caller's token in the shared folder, and write this machine's answer beside it."""
    problem = ""
    if not eventually(lambda: token.is_file() and read_file(token) == text, LOOK_S):
        problem = "does not see"
    else:
        try:
            token.with_name(answer).touch()
        except OSError:
            problem = "cannot write to"
    return Look(socket.gethostname(), __version__, problem)


def eventually(is_true: Callable[[], bool], wait_s: float | None = None) -> bool:
    """Whether this becomes true in time, by default in VISIBLE_S."""
    wait_s = VISIBLE_S if wait_s is None else wait_s
    end = time.monotonic() + wait_s
    while not is_true():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


def listing(folder: Path) -> dict[str, str]:
    """The names in a run folder, with the sha256 of those files that the caller reads."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    read = {name: read_file(folder / name) for name in names if name in DIGESTED}
    return {name: hashlib.sha256(read.get(name, b"")).hexdigest() for name in names}


class Node:
    """One job's process. Ray's actor: `run` and `stop` are called in threads of their own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False
        self._lock = threading.Lock()

    def host(self) -> str:
        """This machine's name, which also says that the job has one."""
        return socket.gethostname()

    def run(self, arguments: list[str], folder: Path, log: Path, env: Mapping[str, str]) -> End:
        """Run the job of this run folder to its end. `env` is for what the machine does not set."""
        if not eventually((folder / DIGESTED[0]).is_file):
            return End(2, f"{socket.gethostname()} does not see {folder}: is it shared?", 0.0, {})
        began = time.perf_counter()
        with log.open("ab") as file:
            logged = file.tell()
            self._start(arguments, file.fileno(), dict(env) | os.environ)
        assert self._process
        with self._process as process:
            code = process.wait()
        seconds = time.perf_counter() - began
        return End(code, last_line(log, logged), seconds, listing(folder))

    def _start(self, arguments: list[str], out: int, env: Mapping[str, str]) -> None:
        with self._lock:  # `stop` comes before this or after it
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,  # it closes with this process, which tells the child
                stdout=out,
                stderr=out,
                env=env,
                start_new_session=True,  # what ends Ray's processes lets it save
            )
            if self._told:
                self._process.terminate()

    def stop(self) -> None:
        """Tell the job to save and stop."""
        with self._lock:
            self._told = True
            if self._process:
                self._process.terminate()


def last_line(log: Path, start: int) -> str:
    """The last line from byte `start` on: what was before is another process's.

    Without the name of the program, which begins the lines that tell an error.
    """
    lines = read_file(log)[start:].decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    return last.removeprefix("leanres: ")
