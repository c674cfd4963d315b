"""`leanres campaign` trains a plan, writes what it is asked for, and continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from forks import ForkedPopen

from leanres.cli.campaign import _keep
from leanres.data.sources import load_data
from leanres.metrics.classification import accuracy_text
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.fit import fit
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import load_classifier
from leanres.training.device import CPU
from leanres.training.recipes import RECIPES
from leanres.trials.campaign import PlanRow
from leanres.trials.executors import InProcess
from leanres.trials.jobs import Job

DATA = load_data("digits")
CPU32 = CPU("cpu", "float32", compiled=False)
OWN = ["--data", "digits", "--devices", "cpu", "--threads", "1"]


def places(folder):
    return [w for name in ("runs", "results", "weights") for w in (f"--{name}", folder / name)]


def test_a_plan_is_trained_into_ledger_entries_and_weights(plan, tmp_path, leanres, forked_workers):
    words = ["campaign", plan, "--at-once", 2, *places(tmp_path), *OWN]
    done = leanres(*words)
    assert done.code == 0, done.err
    assert f"{plan}: 0 of 3 finished; 2 at once" in done.out
    runs = tmp_path / "runs"
    assert f"started  {runs}/quick-3\nstarted  {runs}/digits-0\n" in done.out
    assert "3 of 3 finished\n" in done.out
    quick = json.loads((tmp_path / "results" / "quick.json").read_text())
    assert sorted(run["seed"] for run in quick["runs"]) == [3, 4]
    assert quick["summary"]["n"] == 2
    assert quick["recipe"]["epochs"] == 1
    assert quick.keys() == {"command", "counted", "recipe", "runs", "sha256", "summary"}
    (other,) = json.loads((tmp_path / "results" / "digits.json").read_text())["runs"]
    assert (other["split"], other["n"], len(other["epochs"])) == ("val", 180, 2)
    shipped = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert shipped == ["digits.md", "digits.safetensors", "quick.md", "quick.safetensors"]
    (first,) = (run for run in quick["runs"] if run["seed"] == 3)
    card = (tmp_path / "weights" / "quick.md").read_text()
    assert f"| before export | {accuracy_text(first)} |" in card
    assert load_predictor(tmp_path / "weights" / "quick.safetensors").config.widths == (8,)
    (row,) = (line for line in done.out.splitlines() if line.startswith("quick  "))
    assert row.split()[:4] == ["quick", "2", *_mean_sd(quick["runs"])]

    (tmp_path / "weights" / "digits.md").unlink()  # as if it had been killed before
    again = leanres(*words)
    assert again.out.splitlines()[1].startswith(f"finished {runs}/digits-0: ")
    assert " -> " in again.out.splitlines()[1]
    assert (tmp_path / "weights" / "digits.md").exists()
    again = leanres(*words)  # nothing is left to do, and nothing is done
    assert again.out.splitlines()[1] == "3 of 3 finished"
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


def test_ctrl_c_stops_them_all_and_is_passed_on(plan, tmp_path):
    words = ["campaign", plan, *OWN, "--runs", tmp_path / "runs"]
    command = [sys.executable, "-u", "-m", "leanres", *map(str, words)]
    with ForkedPopen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        assert "0 of 3 finished" in process.stdout.readline()
        assert process.stdout.readline() == f"started  {tmp_path}/runs/quick-3\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        timer.cancel()
    assert process.returncode == 130
    assert rest.startswith(f"stopped  {tmp_path}/runs/quick-3")
    assert "started" not in rest


def test_weights_that_cannot_be_rounded_are_kept_whole_and_no_failure_ends_the_campaign(
    tmp_path, monkeypatch
):
    run = tmp_path / "runs" / "digits-0"
    row = PlanRow("digits", replace(RECIPES["digits"], model=SpeedNetConfig((8,)), epochs=1))
    fit(run, row.recipe, DATA, CPU32)
    finished = Job(row.recipe, run)
    monkeypatch.setattr("leanres.ship.check.DRIFT", 1e-9)
    said = _keep(row, finished, tmp_path / "weights", DATA, "cpu", False)
    assert said.startswith(f" -> {tmp_path / 'weights' / 'digits.safetensors'} as float32 (")
    whole, own = (
        load_classifier(path)[0]
        for path in (tmp_path / "weights" / "digits.safetensors", run / "model.safetensors")
    )
    for mine, theirs in zip(whole.parameters(), own.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "file").touch()
    assert "its weights are not in" in _keep(row, finished, tmp_path / "file", DATA, "cpu", False)
    other_seed = Job(replace(row.recipe, seed=1), run)
    assert _keep(row, other_seed, tmp_path / "none", DATA, "cpu", False) == ""
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
    assert line.startswith(f"failed   {tmp_path}/runs/broken-0: augment =")
    assert "1 of 2 finished; the same command continues" in done.out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("[", "is not TOML"),
        ("digits = 3", "is not a table"),
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
