"""A race: cold and warm agree, a stopped one continues, phases are warmed up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from leanres.data.sources import locate
from leanres.errors import UserError
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts
from leanres.trials.executors import InProcess, LocalProcesses
from leanres.trials.jobs import Event, Job
from leanres.trials.race import cold_run, phases, race, warm_runs

HEADER = {"command": "leanres", "recipe": {"lr": 1.0, "seed": 0}, "counted": "warm"}
DIGITS = locate("digits")


def made(seed):
    recipe = {"lr": 1.0, "seed": seed}
    return {"seed": seed, "accuracy_tta": 0.95, "train_seconds": 2.0, "recipe": recipe}


class Forbidden:
    """An executor for jobs that must not be trained."""

    slots = 1
    running = ()

    def stop(self):
        pass


@pytest.mark.usefixtures("_one_thread")
def test_cold_and_warm_runs_of_a_seed_are_the_same_training(
    tmp_path, tiny, digits, device, forked_workers
):
    job = Job(replace(tiny, seed=1), tmp_path / "race-1", DIGITS)
    cold = cold_run(job, LocalProcesses(1, ["cpu"], threads=1), device)
    (warm,) = warm_runs(tiny, [1], digits, device)
    for key in ("accuracy", "accuracy_tta", "tta", "n", "recipe", "fingerprints"):
        assert cold[key] == warm[key], key
    assert cold["wall_seconds"] > cold["train_seconds"] > 0
    assert warm["train_seconds"] > 0 < warm["evaluate_seconds"]
    assert cold["network"] == warm["network"]
    # A run that ended and was not entered is taken as it is; one of another recipe is not.
    again = cold_run(job, Forbidden(), device)
    changed = {"wall_seconds": None, "matrix_tflops": again["matrix_tflops"]}
    assert again == cold | changed
    with pytest.raises(UserError, match="race-1 holds a run of another recipe"):
        cold_run(replace(job, recipe=tiny), Forbidden(), device)


def test_a_run_that_was_measured_on_val_is_measured_on_test_without_training(
    tmp_path, tiny, digits, device
):
    job = Job(replace(tiny, val=200), tmp_path / "race-0", {"measure": "val"})
    executor = InProcess(digits, device)
    with pytest.raises(UserError, match="has none"):
        cold_run(job, executor, device)
    found = cold_run(replace(job, origin={"measure": "test"}), executor, device)
    assert (found["split"], found["n"], found["wall_seconds"]) == ("test", 360, None)
    assert len(found["epochs"]) == 2


def test_a_cold_run_without_test_images_is_refused_too(tmp_path, tiny, digits, device):
    executor = InProcess(replace(digits, test=None), device)
    with pytest.raises(UserError, match="has none"):
        cold_run(Job(tiny, tmp_path / "race-0"), executor, device)


def test_a_training_that_fails_is_one_line(tmp_path, device, tiny):
    class Failing(Forbidden):
        def submit(self, job):
            self.running = (job,)

        def events(self, deadline):
            (job,) = self.running
            self.running = ()
            yield Event("failed", job, "because")

    job = Job(tiny, tmp_path / "race-0", DIGITS)
    with pytest.raises(UserError, match="seed 0 failed: because"):
        cold_run(job, Failing(), device)


def test_a_race_needs_test_images(tiny, digits, device):
    with pytest.raises(UserError, match="has none"):
        next(iter(warm_runs(tiny, [0], replace(digits, test=None), device)))


@pytest.mark.parametrize("setting", [{"stop_after": 1}, {"keep_best": True}])
def test_a_warm_race_trains_every_epoch(tiny, digits, device, setting):
    with pytest.raises(UserError, match="leave out stop_after and keep_best"):
        next(warm_runs(replace(tiny, val=0.1, **setting), [0], digits, device))


def test_a_race_runs_the_seeds_that_its_file_lacks(tmp_path):
    out = tmp_path / "results" / "race.json"
    asked = []

    def train(seeds):
        asked.append(list(seeds))
        yield from map(made, seeds)

    assert [found["n"] for found in race(train, [0, 1], 0.94, out, HEADER)] == [1, 2]
    assert [found["n"] for found in race(train, [0, 1, 2], 0.94, out, HEADER)] == [3]
    assert [found["n"] for found in race(train, [0, 1, 2], 0.94, out, HEADER)] == [3]
    assert asked == [[0, 1], [2]]
    entry = json.loads(out.read_text())
    assert [run["seed"] for run in entry["runs"]] == [0, 1, 2]
    assert (entry["counted"], entry["summary"]["n"]) == ("warm", 3)
    assert entry.keys() == {"command", "counted", "recipe", "runs", "sha256", "summary"}


def test_a_race_that_is_stopped_keeps_its_runs(tmp_path):
    def train(seeds):
        yield made(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(race(train, [0, 1], 0.94, tmp_path / "race.json", HEADER))
    assert len(json.loads((tmp_path / "race.json").read_text())["runs"]) == 1


def test_every_phase_is_warmed_up():
    recipe = Recipe(
        epochs=10, batch_size=500, progressive_resizing=((0, 0.5), (0.4, 1.0)), freeze_stem_at=0.7
    )
    assert phases(StepCounts(recipe, 5000)) == [0, 40, 70]
    assert phases(StepCounts(replace(recipe, freeze_stem_at=1.0), 5000)) == [0, 40]
