"""`train --processes`, and commands in the processes that torchrun starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from forks import free_port, ranked


def test_processes_are_started_train_together_and_speak_once(tiny, tmp_path):
    """Real processes, by torchrun's agent; that they compute what one computes is tested below."""
    words = ["train", "digits", "--data", "digits", *tiny, "--epochs", "2", "--out", "run"]
    words += ["--set", "accumulate=2", "--set", "val=0.2", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "leanres", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len({*lines}) == len(lines)
    assert ", 2 processes (exact), seed 0 -> run" in done.stdout
    assert sum(line.startswith("epoch ") for line in lines) == 2
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["hardware"]["processes"], info["hardware"]["reduction"]) == (2, "exact")
    assert info["test_reads"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "optimizers"], "compare runs in one process: start it without torchrun"),
        (["bench", "step"], "bench runs in one process: start it without torchrun"),
        (["train", "--processes", "3"], "--processes 3, but 2 have been started: leave it out"),
        (["train", "--folds", "2"], "--folds trains one network per process: give --at-once"),
    ],
)
def test_what_does_not_fit_several_processes_is_refused(leanres, mistake, words, said, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **ranked(0, 2, free_port())})
    mistake(leanres(*words), said)


def test_folds_are_not_trained_by_processes_together(leanres, mistake):
    mistake(leanres("train", "--folds", 2, "--processes", 2), "give --at-once, not --processes")


def test_only_the_first_process_says_what_is_wrong_with_a_command(leanres, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **ranked(1, 2, free_port())})
    outcome = leanres("train", "no-such-recipe")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "")
