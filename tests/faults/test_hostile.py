"""Hostile inputs end in one line; the harness notices those that do not."""

from __future__ import annotations

import os
import random
import signal
import time

import hostile
import pytest
from forks import fork
from hostile import MARK, MEMORY, Case, judge
from hostile.readers import readers


def test_hostile_inputs_neither_run_nor_crash_nor_hang_nor_end_in_a_traceback():
    """In a process of its own, whose folder and environment the harness changes."""
    end = fork(lambda: hostile.main(0.01, seconds=30))
    figures = eval(end.message)  # the dict that main returns
    assert figures["wrong"] == []
    assert figures["inputs"] > 200
    kinds = {"pickle", "archive", "image", "weights", "TOML", "JSON", "odd file", "command"}
    assert kinds <= figures["by_kind"].keys()


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


def test_damaged_headers_of_every_layout_end_in_one_line_or_are_read(tmp_path, monkeypatch):
    """Twelve of each, and crafted ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    ends = (
        (case, judge(case, fork(case.read, 30, MEMORY), tmp_path))
        for case in readers(tmp_path, 12, random.Random(0))
    )
    assert [f"{case.kind} {case.name}: {reason}" for case, reason in ends if reason] == []
