"""Stopping between two steps: Ctrl-C and SIGTERM are remembered until the work can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work between two steps, and all is saved; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While entered, SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """While entered, the first Ctrl-C or SIGTERM is remembered instead of raised.

    `signal` is its number, 0 if none came; `check` raises Stopped if one came. A second Ctrl-C
    interrupts at once.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        main = threading.current_thread() is threading.main_thread()  # others get no signals
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
