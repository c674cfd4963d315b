"""A Ray cluster of "machines" on this one, each of which can be lost as a whole.

A machine is a set of Linux namespaces (`unshare`): it has a host name, and its own view of the file
system; when its first process is killed, all its processes are killed at once. Needs root or user
namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
UNSHARE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user", "--user"])]
MACHINE = [*UNSHARE, "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
# One view of a folder that learns late what others do there, as NFS does; locks are the folder's.
LATE_S = 4
LATE = (
    "bindfs --enable-lock-forwarding --multithreaded"
    f" -o entry_timeout={LATE_S},negative_timeout={LATE_S},attr_timeout={LATE_S} {{0}} {{0}} && "
)


def wait_for(is_true: Callable[[], Any], seconds: float = 90) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := is_true()):
        assert time.monotonic() < end, f"it is not so after {seconds} s"
        time.sleep(0.05)
    return answer


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/uts")


def processes(words: str) -> list[int]:
    """The ids of the processes whose command line has these words."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in line.read_text(errors="replace").replace("\0", " "):
                found.append(int(line.parent.name))
    return found


def status(pid: int) -> list[str]:
    """State and parent of a process, and what else /proc says of it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int) -> int:
    return int(status(pid)[1])


def has_ended(pid: int) -> bool:
    """Z: it has, and its parent is not there to ask."""
    return not Path(f"/proc/{pid}").exists() or status(pid)[0] == "Z"


@dataclass
class Machine:
    name: str
    process: subprocess.Popen[bytes]

    def holds(self, pid: int) -> bool:
        first = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return namespace(pid) == namespace(int(first))

    def lose(self) -> None:
        """Kill every process of it at once."""
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """A head without CPUs, where the commands run, and machines with one CPU each."""

    folder: Path
    shared: Path  # a folder that all machines see
    port: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["start", "--head", f"--port={self.port}", "--num-cpus=0", "--block"]
        more = ["--include-dashboard=false", f"--temp-dir={self.folder}"]
        with (self.folder / "head.log").open("wb") as log:
            self.head = subprocess.Popen(
                [*RAY, *words, *more], stdout=log, stderr=log, start_new_session=True
            )
        health = [*RAY, "health-check", "--address", self.address]
        wait_for(lambda: subprocess.run(health, capture_output=True).returncode == 0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, first: str = "") -> Machine:
        """Start a machine; `first` is what a shell does there before Ray, ending in &&."""
        ray = [*RAY, "start", f"--address={self.address}", "--num-cpus=1", "--block"]
        shell = f"hostname {name} && {first}exec {shlex.join(ray)}"
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*MACHINE, "sh", "-c", shell], stdout=log, stderr=log, start_new_session=True
            )
        self.machines[name] = Machine(name, process)
        wait_for(lambda: name in self.alive() or process.poll() is not None)
        assert process.poll() is None, (self.folder / f"{name}.log").read_text()
        return self.machines[name]

    def lose(self, name: str) -> None:
        """Lose a machine, and wait until Ray knows."""
        self.machines.pop(name).lose()
        wait_for(lambda: name not in self.alive())

    def alive(self) -> list[str]:
        import ray

        if not ray.is_initialized():
            ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        return [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]

    def stop(self) -> None:
        import ray

        ray.shutdown()
        for machine in self.machines.values():
            machine.lose()
        self.head.terminate()
        self.head.wait(30)

    def leanres(self, *words: object, view: str = "") -> subprocess.Popen[str]:
        """Start a command on the head, on the machines; with `view` in its own file system."""
        command = [sys.executable, "-m", "leanres", *map(str, words)]
        command += ["--executor", "ray", "--address", self.address]
        if view:  # not of the processes too: Ray looks for its own here
            ended = f"code=$?; umount -l {self.shared}; exit $code"
            shell = f"{view}cd {self.shared} && {{ {shlex.join(command)}; {ended}; }}"
            command = [*UNSHARE, "sh", "-c", shell]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=self.shared, text=True, **pipes)

    def trains(self, run: str, epochs: int) -> int:
        """The process that trains this run, once so many of its epochs are done."""
        metrics = self.shared / run / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= epochs)
        (pid,) = processes(f"leanres.trials.worker {self.shared / run} ")
        return pid
