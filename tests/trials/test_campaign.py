"""A campaign trains its plan in order, loses nothing when it is stopped, and continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.cli.campaign import _keep
from leanres.data.sources import load_data, locate
from leanres.errors import UserError
from leanres.metrics.statistics import paired_seeds
from leanres.models.cost import count_params
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.checkpoint import saved
from leanres.runs.layout import CHECKPOINTS
from leanres.runs.predictor import load_predictor
from leanres.runs.run import fit
from leanres.runs.weights import load_weights
from leanres.training.device import CPU
from leanres.training.loop import network_config
from leanres.training.recipe import StepCounts
from leanres.training.recipes import RECIPES
from leanres.trials.campaign import (
    COUNTED,
    PlanRow,
    campaign,
    plan_jobs,
    read_plan,
    summary_rows,
)
from leanres.trials.entry import add_run
from leanres.trials.executors import InProcess
from leanres.trials.jobs import Job

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
DIGITS = locate("digits")
DATA = load_data("digits")
CPU32 = CPU("cpu", "float32", compiled=False)
OWN = ["--data", "digits", "--devices", "cpu", "--threads", "1"]


def places(folder):
    return [w for name in ("runs", "results", "weights") for w in (f"--{name}", folder / name)]


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_plan_is_trained_into_ledger_entries_and_weights(plan, tmp_path, leanres):
    words = ["campaign", plan, "--at-once", 2, *places(tmp_path), *OWN]
    done = leanres(*words)
    assert done.code == 0, done.err
    assert f"{plan}: 3 trainings, 0 finished; 2 at once" in done.out
    assert "started  quick-3\nstarted  digits-0\n" in done.out
    assert "3 of 3 trainings finished\n" in done.out
    quick = json.loads((tmp_path / "results" / "quick.json").read_text())
    assert sorted(run["seed"] for run in quick["runs"]) == [3, 4]
    assert quick["summary"]["n"] == 2
    assert quick["recipe"]["epochs"] == 1
    assert quick.keys() == {"command", "counted", "recipe", "runs", "summary"}
    (other,) = json.loads((tmp_path / "results" / "digits.json").read_text())["runs"]
    assert (other["split"], other["n"], len(other["epochs"])) == ("val", 180, 2)
    shipped = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert shipped == ["digits.md", "digits.safetensors", "quick.md", "quick.safetensors"]
    (first,) = (run for run in quick["runs"] if run["seed"] == 3)
    card = (tmp_path / "weights" / "quick.md").read_text()
    assert f"| before export | {100 * first['accuracy']:.2f} % (" in card
    assert load_predictor(tmp_path / "weights" / "quick.safetensors").config.widths == (8,)
    (row,) = (line for line in done.out.splitlines() if line.startswith("quick  "))
    assert row.split()[:4] == ["quick", "2", *_mean_sd(quick["runs"])]

    (tmp_path / "weights" / "digits.md").unlink()  # as if it had been killed before
    again = leanres(*words)
    assert again.out.splitlines()[1].startswith("finished digits-0 -> ")
    assert (tmp_path / "weights" / "digits.md").exists()
    again = leanres(*words)  # nothing is left to do, and nothing is done
    assert again.out.splitlines()[1] == "3 of 3 trainings finished"
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


def _mean_sd(runs):
    values = torch.tensor([run["accuracy"] for run in runs], dtype=torch.float64)
    return f"{100 * values.mean():.2f}", f"{100 * values.std():.2f}"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_committed_plan_is_one_of_networks_that_fit_cifar10(file):
    for row in read_plan(file):
        network = network_config(row.recipe, tuple("abcdefghij"))
        assert count_params(network) <= (5_000_000 if row.name.startswith(LEAN) else 12_000_000)
        assert StepCounts(row.recipe, 50_000 - row.recipe.val).total > 0
        assert (row.measure == "val") == (row.recipe.val > 0)


def test_a_setting_for_every_row_comes_after_its_own(plan):
    rows = read_plan(plan, ["epochs=9", "lr=0.5"])
    assert [(row.recipe.epochs, row.recipe.lr) for row in rows] == [(9, 0.5)] * 2


def test_the_first_seeds_of_all_rows_come_first(plan, tmp_path):
    jobs = [job for _, job in plan_jobs(read_plan(plan), tmp_path, DIGITS)]
    assert [job.folder.name for job in jobs] == ["quick-3", "digits-0", "quick-4"]
    assert [job.recipe.seed for job in jobs] == [3, 0, 4]
    assert [job.origin["measure"] for job in jobs] == ["test", "val", "test"]
    assert jobs[0].origin["data"] == "digits"


def test_when_its_time_is_up_the_running_ones_save_and_the_next_call_continues(plan, tmp_path):
    plan.write_text("[digits]\nset = [\"model={family='speednet', widths=[8]}\", 'epochs=300']\n")
    planned = plan_jobs(read_plan(plan), tmp_path / "runs", DIGITS)
    folder, steps = planned[0][1].folder, [0]
    executor = InProcess(DATA, CPU32)
    for kind in ("started", "resumed"):
        events = campaign(planned, tmp_path / "results", executor, "", time.monotonic() + 2)
        assert next(events).kind == kind
        (end,) = events
        assert end.kind == "stopped"
        assert end.detail.endswith("of 300 epochs are done")
        steps.append(int(saved(folder / CHECKPOINTS)[0].name))
    assert 0 < steps[1] < steps[2] < 300 * 22
    assert not (tmp_path / "results").exists()


def test_ctrl_c_stops_them_all_and_is_passed_on(plan, tmp_path):
    words = ["campaign", plan, *OWN, "--runs", tmp_path / "runs"]
    command = [sys.executable, "-m", "leanres", *map(str, words)]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        assert "3 trainings" in process.stdout.readline()
        assert process.stdout.readline() == "started  quick-3\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        timer.cancel()
    assert process.returncode == 130
    assert rest.startswith("stopped  quick-3")
    assert "started" not in rest


def test_weights_that_cannot_be_rounded_are_kept_whole_and_no_failure_ends_the_campaign(
    tmp_path, monkeypatch
):
    run = tmp_path / "runs" / "digits-0"
    row = PlanRow("digits", replace(RECIPES["digits"], model=SpeedNetConfig((8,)), epochs=1))
    fit(run, row.recipe, DATA, CPU32)
    finished = Job(row.recipe, run)
    monkeypatch.setattr("leanres.ship.export.DRIFT", 1e-9)
    said = _keep(row, finished, tmp_path / "weights", DATA, "cpu")
    assert said.startswith(f" -> {tmp_path / 'weights' / 'digits.safetensors'} as float32 (")
    whole, own = (
        load_weights(path)[0]
        for path in (tmp_path / "weights" / "digits.safetensors", run / "model.safetensors")
    )
    for mine, theirs in zip(whole.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "file").touch()
    assert "its weights are not in" in _keep(row, finished, tmp_path / "file", DATA, "cpu")
    assert _keep(row, Job(replace(row.recipe, seed=1), run), tmp_path / "none", DATA, "cpu") == ""
    assert not (tmp_path / "none").exists()


def test_a_failing_training_is_reported_and_the_others_continue(
    plan, tmp_path, leanres, monkeypatch
):
    def in_process(slots, devices, threads):
        assert (slots, devices, threads) == (1, ["cpu"], 1)
        return InProcess(DATA, CPU32)

    monkeypatch.setattr("leanres.trials.executors.LocalProcesses", in_process)
    plan.write_text(
        '[broken]\nrecipe = "digits"\nset = ["model=resnet20",'
        " \"augment=[['crop', {padding=40, mode='reflect'}]]\"]\n"
        "[digits]\nset = [\"model={family='speednet', widths=[8]}\", 'epochs=1']\n"
    )
    done = leanres("campaign", plan, *places(tmp_path), *OWN)
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("failed")]
    assert line.startswith("failed   broken-0: augment =")
    assert "1 of 2 trainings finished; the same command continues" in done.out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-0"]


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
        ("[digits]\nset = 'epochs=2'", "give strings"),
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
    planned = plan_jobs(read_plan(plan), tmp_path / "runs", DIGITS)
    fit(planned[0][1].folder, planned[0][1].recipe, DATA, CPU32)
    others = plan_jobs(read_plan(plan, ["epochs=5"]), tmp_path / "runs", DIGITS)
    with pytest.raises(UserError, match="holds a run of another recipe"):
        list(campaign(others, tmp_path / "results", InProcess(DATA, CPU32), ""))


def test_a_ledger_entry_of_something_else_is_refused_before_anything_runs(plan, tmp_path):
    (tmp_path / "digits.json").write_text("{}")
    planned = plan_jobs(read_plan(plan), tmp_path / "runs", DIGITS)
    with pytest.raises(UserError, match="is no ledger entry"):
        list(campaign(planned, tmp_path, InProcess(DATA, CPU32), ""))
    assert not (tmp_path / "runs").exists()


def test_a_summary_has_the_paired_difference_of_rows_that_share_seeds(tmp_path):
    recipe = RECIPES["digits"]
    rows = [PlanRow(name, recipe) for name in "abc"]
    measured = {"a": {0: 0.5, 1: 0.7, 2: 0.6}, "b": {1: 0.75, 2: 0.66, 3: 0.1}, "c": {}}
    for row in rows:
        header = {"command": "", "counted": COUNTED, "recipe": recipe.to_dict()}
        for seed, accuracy in measured[row.name].items():
            run = {"seed": seed, "accuracy": accuracy, "recipe": recipe.to_dict() | {"seed": seed}}
            add_run(tmp_path / f"{row.name}.json", header, run)
    first, second = summary_rows(rows, tmp_path, "test")
    assert (first["variant"], first["mean"], len(second["accuracies"])) == ("a", 0.6, 3)
    oracle = paired_seeds([0.7, 0.6], [0.75, 0.66])
    assert second["difference"]["half_width"] == oracle.half_width
    assert second["difference"]["n"] == 2
    assert summary_rows(rows, tmp_path, "val") == []
