"""A ledger entry keeps every run, whoever writes it, and its summary is plain statistics."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from leanres.errors import UserError
from leanres.trials.ledger_entry import add_run, read_entry, summary

HEADER = {"command": "leanres", "recipe": {"lr": 1.0, "seed": 0}, "counted": "warm"}


def made(seed, accuracy=0.95, seconds=2.0, **more):
    own = {"seed": seed, "accuracy": accuracy - 0.01, "accuracy_tta": accuracy}
    return own | {"train_seconds": seconds, "recipe": {"lr": 1.0, "seed": seed}} | more


def test_two_processes_that_write_one_entry_lose_nothing(tmp_path):
    out = tmp_path / "entry.json"
    code = (
        "import sys; from pathlib import Path\n"
        "from test_ledger_entry import HEADER, add_run, made\n"
        "print(flush=True); sys.stdin.readline()\n"
        f"for seed in range(1, 40, 2): add_run(Path({str(out)!r}), HEADER, made(seed))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=__file__.rpartition("/")[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()  # it has imported everything
        other.stdin.write(b"\n")
        other.stdin.flush()
        for seed in range(0, 40, 2):
            add_run(out, HEADER, made(seed))
        assert other.wait(60) == 0
    entry = json.loads(out.read_text())
    assert sorted(run["seed"] for run in entry["runs"]) == list(range(40))
    assert [run["seed"] for run in entry["runs"]] != list(range(40))  # they did take turns
    assert entry["summary"]["n"] == 40


def test_a_seed_is_entered_once(tmp_path):
    out = tmp_path / "entry.json"
    add_run(out, HEADER, made(0, 0.95))
    assert add_run(out, HEADER, made(0, 0.5))["accuracy_tta"]["mean"] == 0.95
    assert len(json.loads(out.read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"counted": "warm", "runs": [{"seed": 0, "recipe": {"lr": 2.0, "seed": 0}}]}',
            "runs of another recipe",
        ),
        ('{"counted": "cold", "runs": []}', "runs counted cold"),
        ('{"counted": "warm", "runs": [{"recipe": 1}]}', "is not a ledger entry of a race"),
        ("[]", "is not a ledger entry of a race"),
        ("{", "is not a ledger entry of a race"),
        ('{"runs": [1]}', "is not a ledger entry of a race"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content, message):
    out = tmp_path / "entry.json"
    out.write_text(content)
    for change in (lambda: read_entry(out, HEADER), lambda: add_run(out, HEADER, made(0))):
        with pytest.raises(UserError, match=message):
            change()
    assert out.read_text() == content


def test_the_summary_is_plain_statistics():
    runs = [made(0, 0.95, 2.0, wall_seconds=None), made(1, 0.93, 4.0, wall_seconds=9.0)]
    found = summary(runs, target=0.94)
    assert (found["n"], found["reached"]) == (2, 0.5)
    assert found["train_seconds"] == {"mean": 3.0, "sd": statistics.stdev([2.0, 4.0])}
    assert found["wall_seconds"] == {"mean": 9.0, "sd": None}
    assert "evaluate_seconds" not in found
