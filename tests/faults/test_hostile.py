"""Hostile inputs end in one line; the harness notices those that do not."""

from __future__ import annotations

import os
import signal
import time

import hostile
import pytest
from forks import fork
from hostile import MARK, MEMORY, Case, judge
from hostile.readers import READERS


def test_hostile_inputs_neither_run_nor_crash_nor_hang_nor_end_in_a_traceback():
    """In a process of its own, whose folder and environment the harness changes."""
    end = fork(lambda: hostile.main(0.01, seconds=30))
    figures = eval(end.message)  # the dict that main returns
    assert figures["wrong"] == []
    assert figures["inputs"] > 200
    kinds = {"pickle", "archive", "image", "weights", "TOML", "JSON", "odd file", "command"}
    assert kinds <= figures["by_kind"].keys()
    assert all(figures["by_kind"][f"{name} file"] >= 12 for name in READERS)


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (lambda: os.mkdir(MARK), "executed"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed"),
        (lambda: time.sleep(9), "hung"),
        (lambda: {}["a"], "traceback: KeyError"),
        (lambda: None, "taken"),
    ],
)
def test_the_harness_notices(read, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case("kind", "name", read)
    assert judge(case, fork(case.read, 0.5, MEMORY), tmp_path).startswith(word)
