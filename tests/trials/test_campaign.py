"""A campaign trains its plan in order, loses nothing when it is stopped, and continues."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from leanres.data.sources import load_data, locate
from leanres.errors import UserError
from leanres.metrics.statistics import paired_seeds
from leanres.models.cost import count_params
from leanres.runs.checkpoint import saved
from leanres.runs.fit import fit
from leanres.runs.layout import CHECKPOINTS
from leanres.training.device import CPU
from leanres.training.loop import network_config
from leanres.training.recipes import RECIPES
from leanres.training.step_counts import StepCounts
from leanres.trials.campaign import (
    COUNTED,
    PlanRow,
    campaign,
    plan_jobs,
    read_plan,
    summary_rows,
)
from leanres.trials.executors import InProcess
from leanres.trials.ledger_entry import add_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LEAN = ("choose-", "best-5m", "resnet24", "resnet26")

DIGITS = locate("digits")
DATA = load_data("digits")
CPU32 = CPU("cpu", "float32", compiled=False)


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_committed_plan_is_one_of_networks_that_fit_cifar10(file):
    for row in read_plan(file):
        network = network_config(row.recipe.model, DATA.train)
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


def test_a_run_folder_of_another_recipe_is_refused(plan, tmp_path):
    planned = plan_jobs(read_plan(plan), tmp_path / "runs", DIGITS)
    fit(planned[0][1].folder, planned[0][1].recipe, DATA, CPU32)
    others = plan_jobs(read_plan(plan, ["epochs=5"]), tmp_path / "runs", DIGITS)
    with pytest.raises(UserError, match="holds a run of another recipe"):
        list(campaign(others, tmp_path / "results", InProcess(DATA, CPU32), ""))


def test_a_ledger_entry_of_something_else_is_refused_before_anything_runs(plan, tmp_path):
    (tmp_path / "digits.json").write_text("{}")
    planned = plan_jobs(read_plan(plan), tmp_path / "runs", DIGITS)
    with pytest.raises(UserError, match="is not a ledger entry"):
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
