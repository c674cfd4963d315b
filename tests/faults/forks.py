"""Run a function in a forked process, so that it may be killed, crash or hang."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from leanres.errors import UserError

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
