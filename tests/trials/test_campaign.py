"""A campaign trains its plan in order, loses nothing when it is stopped, and goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.cli.campaign import _keep, _rows
from leanres.data.sources import load_data
from leanres.errors import UserError
from leanres.models.cost import count_params
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.predictor import load_predictor as load_predictor
from leanres.runs.run import fit
from leanres.runs.weights import load_weights
from leanres.training.device import Device
from leanres.training.loop import network_config
from leanres.training.recipe import StepCounts
from leanres.training.recipes import RECIPES
from leanres.trials.jobs import Job, Row, campaign, jobs_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LEAN = ("choose-", "best-5m", "resnet24", "resnet26")

PLAN = """
[quick]
recipe = "digits"
seeds = [3, 4]
set = ["model={family='speednet', widths=[8]}", "epochs=1"]

[digits]
measure = "val"
set = ["model={family='speednet', widths=[8]}", "epochs=2"]
"""
DIGITS = {"data": "digits"}
DATA = load_data("digits")
OWN = ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_plan_is_trained_into_ledger_entries_and_weights(plan, tmp_path, leanres):
    places = [w for name in ("runs", "results", "weights") for w in (f"--{name}", tmp_path / name)]
    words = ["campaign", plan, "--at-once", 2, "--data", "digits", *places, *OWN]
    done = leanres(*words)
    assert done.code == 0, done.err
    assert f"{plan}: 3 trainings, 0 finished; 2 at once" in done.out
    assert "begun    quick-3\nbegun    digits-0\n" in done.out
    assert "3 of 3 trainings finished\n" in done.out
    quick = json.loads((tmp_path / "results" / "quick.json").read_text())
    assert sorted(run["seed"] for run in quick["runs"]) == [3, 4]
    assert quick["summary"]["n"] == 2
    assert "--set epochs=1 " in f"{quick['command']} "
    assert shlex.split(quick["command"])[:3] == ["leanres", "train", "digits"]
    (other,) = json.loads((tmp_path / "results" / "digits.json").read_text())["runs"]
    assert (other["split"], other["n"], len(other["epochs"])) == ("val", 180, 2)
    shipped = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert shipped == ["digits.md", "digits.safetensors", "quick.md", "quick.safetensors"]
    (first,) = (run for run in quick["runs"] if run["seed"] == 3)
    card = (tmp_path / "weights" / "quick.md").read_text()
    assert f"| before rounding | {100 * first['accuracy']:.2f} % (" in card
    assert load_predictor(tmp_path / "weights" / "quick.safetensors").config.widths == (8,)

    (tmp_path / "weights" / "digits.md").unlink()  # as if it had been killed before
    again = leanres(*words)
    assert again.out.splitlines()[1].startswith("finished digits-0 -> ")
    assert (tmp_path / "weights" / "digits.md").exists()
    again = leanres(*words)  # nothing is left to do, and nothing is done
    assert again.out.splitlines()[1:] == ["3 of 3 trainings finished"]
    assert json.loads((tmp_path / "results" / "quick.json").read_text()) == quick
    listed = leanres("runs", "--runs", tmp_path / "none", "--results", tmp_path / "results")
    assert "quick:3" in listed.out

    info = tmp_path / "runs" / "quick-3" / "run.json"
    known = json.loads(info.read_text())
    known["data"]["fingerprints"]["train"] = "0"
    info.write_text(json.dumps(known))
    other = leanres(*words)
    assert other.code == 2
    assert "quick-3 was trained on other data" in other.err


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_committed_plan_is_one_of_networks_that_fit_cifar10(file):
    for row in _rows(file, {}):
        network = network_config(row.recipe, tuple("abcdefghij"))
        assert count_params(network) <= (5_000_000 if row.name.startswith(LEAN) else 12_000_000)
        assert StepCounts(row.recipe, 50_000 - row.recipe.val).total > 0
        assert (row.measure == "val") == (row.recipe.val > 0)


def test_a_setting_for_every_row_comes_after_its_own(plan):
    rows = _rows(plan, DIGITS, ["epochs=9", "lr=0.5"])
    assert [(row.recipe.epochs, row.recipe.lr) for row in rows] == [(9, 0.5)] * 2
    assert [row.words[-4:] for row in rows] == [("--set", "lr=0.5", "--data", "digits")] * 2


def test_the_first_seeds_of_all_rows_come_first(plan, tmp_path):
    jobs = jobs_of(_rows(plan, DIGITS), tmp_path)
    assert [job.name for job in jobs] == ["quick-3", "digits-0", "quick-4"]


def test_when_its_time_is_up_the_running_ones_save_and_the_next_call_goes_on(plan, tmp_path):
    plan.write_text("[digits]\nset = [\"model={family='speednet', widths=[8]}\", 'epochs=300']\n")
    behind = [0]
    for kind in ("begun", "resumed"):
        (job,) = jobs_of(_rows(plan, DIGITS), tmp_path / "runs")
        events = campaign([job], tmp_path / "results", 1, seconds=0.5, words=OWN)
        assert next(events).kind == kind
        while job.epochs_done() == behind[-1]:
            time.sleep(0.1)
        assert [event.kind for event in events] == ["stopped"]
        behind.append(job.epochs_done())
    assert 0 < behind[1] < behind[2] < 300
    assert not (tmp_path / "results").exists()


def test_ctrl_c_stops_them_all_and_is_passed_on(plan, tmp_path):
    words = ["campaign", str(plan), "--data", "digits", "--runs", str(tmp_path / "runs"), *OWN]
    command = [sys.executable, "-m", "leanres", *words]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        assert "3 trainings" in process.stdout.readline()
        assert process.stdout.readline() == "begun    quick-3\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        timer.cancel()
    assert process.returncode == 130
    assert rest.startswith("stopped  quick-3")
    assert "begun" not in rest


def test_weights_that_cannot_be_rounded_are_kept_whole_and_no_failure_ends_the_campaign(
    tmp_path, monkeypatch
):
    run = tmp_path / "runs" / "digits-0"
    row = Row("digits", RECIPES["digits"], ("digits",))
    tiny = replace(row.recipe, model=SpeedNetConfig((8,)), epochs=1)
    fit(run, tiny, DATA, Device("cpu", "float32", compiled=False))
    finished = Job(row, 0, run)
    monkeypatch.setattr("leanres.ship.export.DRIFT", 1e-9)
    said = _keep(finished, tmp_path / "weights", DATA, "cpu")
    assert said.startswith(f" -> {tmp_path / 'weights' / 'digits.safetensors'} as float32 (")
    whole, own = (
        load_weights(path)[0]
        for path in (tmp_path / "weights" / "digits.safetensors", run / "model.safetensors")
    )
    for mine, theirs in zip(whole.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "file").touch()
    assert "its weights are not in" in _keep(finished, tmp_path / "file", DATA, "cpu")
    assert _keep(Job(row, 1, run), tmp_path / "none", DATA, "cpu") == ""
    assert not (tmp_path / "none").exists()


def test_a_failing_training_is_said_and_the_others_go_on(plan, tmp_path, leanres):
    plan.write_text(
        '[broken]\nrecipe = "digits"\nset = ["model=resnet20",'
        " \"augment=[['crop', {padding=40, mode='reflect'}]]\"]\n"
        "[digits]\nset = [\"model={family='speednet', widths=[8]}\", 'epochs=1']\n"
    )
    places = [w for name in ("runs", "results", "weights") for w in (f"--{name}", tmp_path / name)]
    done = leanres("campaign", plan, "--at-once", 1, "--data", "digits", *places, *OWN)
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("failed")]
    assert "broken-0: it ended with 2: leanres: augment =" in line
    assert "1 of 2 trainings finished; the same command goes on" in done.out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("[", "is not TOML"),
        ("digits = 3", "is no table"),
        ("[digit]", "digit"),
        ("[digits]\nseed = 3", "seeds"),
        ("[digits]\nseeds = [1, 1]", "give different whole numbers"),
        ("[digits]\nseeds = []", "give different whole numbers"),
        ("[digits]\nseeds = [true]", "give different whole numbers"),
        ("[digits]\nset = 'epochs=2'", "give texts"),
        ("[digits]\nset = ['epoch=2']", "epochs"),
        ("[digits]\nmeasure = 'train'", "give test or val"),
        ("[digits]\nrecipe = 3", "give the name of a recipe"),
        ("['a/b']\nrecipe = 'digits'", "a name that can be a file's"),
    ],
)
def test_a_plan_with_a_mistake_is_one_line_and_nothing_runs(plan, tmp_path, leanres, text, told):
    plan.write_text(text)
    done = leanres("campaign", plan, "--runs", tmp_path / "runs")
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_of_another_recipe_is_refused(plan, tmp_path):
    jobs = jobs_of(_rows(plan, DIGITS), tmp_path / "runs")
    recipe = replace(jobs[0].row.recipe, seed=jobs[0].seed)
    fit(jobs[0].folder, recipe, DATA, Device("cpu", "float32", compiled=False))
    plan.write_text(PLAN.replace("epochs=1", "epochs=5"))
    with pytest.raises(UserError, match="holds a run of another recipe"):
        list(campaign(jobs_of(_rows(plan, DIGITS), tmp_path / "runs"), tmp_path / "results", 1))


def test_a_ledger_entry_of_something_else_is_refused_before_anything_runs(plan, tmp_path):
    (tmp_path / "digits.json").write_text("{}")
    with pytest.raises(UserError, match="is no ledger entry"):
        list(campaign(jobs_of(_rows(plan, DIGITS), tmp_path / "runs"), tmp_path, 1, words=OWN))
    assert not (tmp_path / "runs").exists()
