"""Run a function or a command in a forked process, so that it may be killed, crash or hang."""

from __future__ import annotations

import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar
from weakref import WeakSet

import torch
import torch.distributed as dist

from leanres.errors import UserError
from leanres.training.distributed import World, joined

OK, TOLD, TRACEBACK = 0, 2, 3  # exit codes: done, a UserError, any other exception


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, or minus the signal that ended it; its last line."""

    code: int
    message: str


def fork(
    function: Callable[[], Any], seconds: float | None = None, memory: int | None = None
) -> Outcome:
    """Run `function` in a child; SIGALRM ends it after so many seconds of CPU or wall time.

    memory: bytes that it may use beyond what this process has.
    """
    with TemporaryFile() as file:
        with warnings.catch_warnings():  # of threads, from 3.12 on: these children start none
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _child(function, file.fileno(), seconds, memory)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), file.read().decode(errors="replace"))


def together(
    function: Callable[[World], Any],
    size: int,
    seconds: float = 120,
    store: dist.TCPStore | None = None,
    **given: Any,
) -> list[Outcome]:
    """Run `function` in `size` forked processes that train together, as torchrun's do.

    store: that of an agent, as torchrun's; else the first process has one. given: what `joined`
    takes.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(size)]
        port, pids = store.port if store else free_port(), []
        for rank, file in enumerate(files):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pids.append(os.fork())
            if pids[-1] == 0:
                os.environ |= ranked(rank, size, port)
                os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(bool(store))
                torch.set_num_threads(1)  # a fork has no others
                _child(lambda: _in_world(function, given), file.fileno(), seconds, None)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for file in files:
            file.seek(0)
        texts = [file.read().decode(errors="replace") for file in files]
        return [Outcome(code, text) for code, text in zip(codes, texts, strict=True)]


def _in_world(function: Callable[[World], Any], given: dict[str, Any]) -> Any:
    with joined(**given) as world:
        return function(world)


def ranked(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables by which torchrun tells a process its place."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in (place | address).items()}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _child(
    function: Callable[[], Any], out: int, seconds: float | None, memory: int | None
) -> None:
    code = OK
    try:
        if seconds is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if memory is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + memory,) * 2)
        returned = function()
        os.write(out, str("" if returned is None else returned).encode())
    except UserError as error:
        code = TOLD
        os.write(out, str(error).encode())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        code = TRACEBACK
        os.write(out, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


class ForkedPopen(subprocess.Popen):
    """As `subprocess.Popen` of `python -m MODULE ...`, but a fork of this process.

    What this process has imported, which takes seconds, is there. One CPU thread: the fork has no
    others.
    """

    living: ClassVar[WeakSet[ForkedPopen]] = WeakSet()  # their pipes are no business of later forks

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        """The one method of Popen that makes the process; its arguments from 3.11 on."""
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = more[:9]
        start_new_session = more[14]
        assert preexec_fn is None
        with warnings.catch_warnings():  # of threads, from 3.12 on
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            for fd in (p2cwrite, c2pread, errread):
                if fd != -1:
                    os.close(fd)
            if start_new_session:
                os.setsid()
            if cwd is not None:
                os.chdir(cwd)
            os.environ.update(env or {})
            _run_module([*map(str, args)], [p2cread, c2pwrite, errwrite])
        self._child_created = True
        self.living.add(self)
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _run_module(command: list[str], fds: list[int]) -> None:
    """Become `python [-u] -m MODULE ...` with these fds as its streams; -1: as they are."""
    code: Any = 1
    try:
        for other in ForkedPopen.living:
            for pipe in filter(None, (other.stdin, other.stdout, other.stderr)):
                pipe.close()
        for number, fd in enumerate(fds):
            if fd != -1:
                os.dup2(fd, number)
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), ("r", "w", "w"))
        sys.stdout.reconfigure(line_buffering="-u" in command[:2])
        sys.stderr.reconfigure(line_buffering=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        module = command[command.index("-m") + 1]
        sys.argv = command[command.index("-m") + 1 :]
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
