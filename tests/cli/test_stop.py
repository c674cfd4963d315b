"""Ctrl-C and SIGTERM end every long command with one line and the signal's exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from forks import ForkedPopen

DIGITS = ["--data", "digits", "--size", "8", "--threads", "1"]
SHARED = [*DIGITS, "--set", "model={family='speednet', widths=[8]}"]
LONG = [*SHARED, "--set", "epochs=100000", "--set", "val=200"]
SEARCH = ["search", "--budget", "20k", "--multiple", "1", *DIGITS]
COMMANDS = {
    "campaign": ["campaign", "plan.toml", *LONG],
    "search": [*SEARCH, "--set", "val=200", "--epochs", "100000"],
    "compare": ["compare", "optimizers", *LONG],
    "race": ["bench", "race", "digits", *LONG],
    "warm race": ["bench", "race", "digits", *LONG, "--warm"],
    "find-lr": ["find-lr", "digits", *SHARED, "--steps", "100000"],
}
BOTH = ("campaign", "search")
CASES = [(name, signal.SIGTERM) for name in COMMANDS] + [(name, signal.SIGINT) for name in BOTH]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_signal_ends_a_command_with_its_exit_code_and_says_so(name, number, tmp_path):
    (tmp_path / "plan.toml").write_text("[digits]\n")
    said = ""
    process = ForkedPopen(
        [sys.executable, "-u", "-m", "leanres", *COMMANDS[name]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if name == "race":  # which prints nothing before its first result
        while not any(tmp_path.glob("runs/*/run.json")):
            assert process.poll() is None
            time.sleep(0.1)
    else:
        said = process.stdout.readline()  # the data is there
    process.send_signal(number)
    said += process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "leanres: stopped by " in said
