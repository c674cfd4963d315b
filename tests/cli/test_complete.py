"""Shell completion, as the shell asks for it: a process of the command line each time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from leanres.cli import complete
from leanres.data.sources import SOURCES
from leanres.metrics.inference import TTA
from leanres.models.zoo import MODELS
from leanres.runs.tracking import TRACKERS
from leanres.training.device import DEVICES, PRECISIONS
from leanres.training.recipe import Recipe
from leanres.training.recipes import NAMED_RECIPES
from leanres.trials.compare import COMPARISONS

COMMAND = """
import sys
from leanres.cli import main
sys.argv[0] = "leanres"
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def run(*words: str, code: str = COMMAND, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a line, without torch."""
    words = line.split(" ")
    asked = {"_LEANRES_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words) - 1)}
    found = run(COMP_WORDS=line, **asked)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("leanres eval", ["evaluate"]),
        ("leanres bench r", ["race"]),
        ("leanres train speed-9", [name for name in NAMED_RECIPES if name.startswith("speed-9")]),
        ("leanres recipes plain", [name for name in NAMED_RECIPES if name.startswith("plain")]),
        ("leanres summary speednet-", ["speednet-5m"]),
        ("leanres train --set weight_", ["weight_decay="]),
        ("leanres train --data mn", ["mnist"]),
        ("leanres train --measure ", ["test", "val"]),
        ("leanres train --device xp", ["xpu"]),
        ("leanres resume run --tta flip-shift-", ["flip-shift-unsure"]),
        ("leanres train --track tensorboard,w", ["tensorboard,wandb"]),
        ("leanres evaluate run --precision b", ["bfloat16"]),
        ("leanres compare sch", ["schedules"]),
        ("leanres train --no-rep", ["--no-report"]),
    ],
)
def test_the_shell_is_offered(line, offered):
    assert completed(line) == offered
    assert offered


def test_every_entry_of_a_table_is_offered():
    """The names are read from the source, so that nothing is imported."""
    tables = {
        complete.RECIPE: [*NAMED_RECIPES],
        complete.MODEL: [*MODELS],
        complete.SETTING: [f"{field.name}=" for field in fields(Recipe)],
        complete.DATA: [name for name in SOURCES if name != "arrays"],
        complete.TTA: [*TTA, "auto"],
        complete.DEVICE: [*DEVICES, "auto"],
        complete.TRACKER: [*TRACKERS],
        complete.COMPARISON: [*COMPARISONS],
        complete.PRECISION: [name for name in PRECISIONS if name != "auto"],
    }
    for offer, names in tables.items():
        assert offer("") == names
        assert offer("no such") == []


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bash_completions"), ("zsh", ".zfunc")])
def test_a_shell_may_be_named_and_the_program_is_leanres_however_it_runs(
    tmp_path, leanres, monkeypatch, shell, file
):
    """`python -m leanres` calls itself so, which is no command that a shell could complete."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["/somewhere/leanres/__main__.py"])
    assert leanres("--install-completion", shell).code == 0
    (written,) = (tmp_path / file).iterdir()
    assert written.stem.removeprefix("_") == "leanres"
    assert f"_LEANRES_COMPLETE=complete_{shell}" in written.read_text()
    assert "_LEANRES_COMPLETE" in leanres("--show-completion", shell).out


def test_a_shell_that_is_none_is_one_line(leanres, mistake):
    for words in (["nosuch"], ["bash", "train"]):
        mistake(leanres("--install-completion", *words), "give bash or zsh or fish")


def test_completion_is_installed_where_the_shell_reads_it(tmp_path):
    shell = "import shellingham\nshellingham.detect_shell = lambda *_: ('bash', '/bin/bash')\n"
    found = run(
        "--install-completion",
        code=shell + COMMAND,
        **dict.fromkeys(("HOME", "USERPROFILE"), str(tmp_path)),
    )
    assert found.returncode == 0, found.stderr
    written = [Path(p) for p in tmp_path.rglob("*") if p.is_file()]
    assert any("_LEANRES_COMPLETE=complete_bash" in path.read_text() for path in written)
    shown = run("--show-completion", code=shell + COMMAND)
    assert "complete -o default -F _leanres_completion leanres" in shown.stdout
