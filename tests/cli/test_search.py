"""`leanres search` in one process and in several."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import optuna
from forks import ForkedPopen
from optuna.storages.journal import JournalFileBackend

from leanres.models.zoo import config_from_dict
from leanres.training.recipe import from_dict
from leanres.training.recipes import RECIPES, load_recipe

WORDS = [
    *("search", "--budget", "20k", "--multiple", "1", "--epochs", "2", "--data", "digits"),
    *("--set", "val=400", "--set", "batch_size=200", "--set", "augment=[]", "--size", "8"),
    *("--devices", "cpu", "--threads", "1"),
]


def read_trials(folder):
    """The trials of a study, by Optuna alone."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.load_study(study_name="search", storage=storage).trials


def test_two_processes_share_a_search_and_a_third_takes_over_what_a_killed_one_left(
    tmp_path, forked_workers
):
    folder = tmp_path / "s"
    command = [sys.executable, "-m", "leanres", *WORDS, "--trials", "3", "--out", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    killed = ForkedPopen([*command, "--at-once", "2"], **pipes)
    while not list(folder.glob("*/checkpoint/0*")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [ForkedPopen([*command, "--json"], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (json.loads(out) for out, _ in outputs)
    assert first == second
    assert len({c["name"] for c in first}) == 3
    ended = [
        line.split(":")[0] for _, err in outputs for line in err.splitlines() if "val " in line
    ]
    assert sorted(ended) == sorted(c["name"] for c in first)
    states = {t.state.name for t in read_trials(folder) if "candidate" in t.user_attrs}
    assert states <= {"COMPLETE", "PRUNED"}
    assert not [t for t in read_trials(folder) if t.state.name == "RUNNING"]
    assert [p.name for p in folder.glob(".*.lock")] == [".study.log.lock"]
    assert len(list(folder.glob("*/run.json"))) == 3


def test_a_search_writes_the_best_network_as_a_recipe(leanres, tmp_path, keep_threads):
    folder = tmp_path / "s"
    words = [*WORDS, "--epochs", "1", "--trials", "2", "--out", folder]
    done = leanres(*words)
    assert done.code == 0, done.err
    assert "Pareto" in done.out
    told = f"leanres train {folder / 'best.toml'} --data digits --size 8"
    assert done.out.splitlines()[-1] == told
    again = leanres(*words, "--json")
    first, _ = json.loads(again.out)
    best = load_recipe(str(folder / "best.toml"))
    plain = from_dict({"val": 400, "batch_size": 200, "augment": []}, RECIPES["plain-sgd"])
    assert best == replace(plain, model=config_from_dict(first["model"]))


def test_a_budget_that_is_none_is_one_line(leanres):
    done = leanres("search", "--budget", "5M,fields=16")
    assert done.code == 2
    assert "no term 'fields'" in done.err
