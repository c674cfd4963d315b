"""Search: all candidates within bounds, exact halving, work shared, nothing lost by a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tomllib
import warnings
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from leanres.data.sources import load_data
from leanres.data.split import Split
from leanres.errors import UserError
from leanres.io import locked
from leanres.models.budget import parse_budget
from leanres.models.cost import count_params, summarize
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_from_dict
from leanres.runs import fit
from leanres.runs import run as runs
from leanres.runs.layout import CHECKPOINTS, HISTORY, read_history
from leanres.runs.run_json import read_info
from leanres.runs.stop import Stopped
from leanres.training.device import CPU
from leanres.training.recipe import from_dict
from leanres.training.recipes import RECIPES, load_recipe
from leanres.trials import executors
from leanres.trials import search as library
from leanres.trials.executors import InProcess
from leanres.trials.jobs import Event
from leanres.trials.proposals import Bounds, fit_widths
from leanres.trials.search import (
    Candidate,
    _Searcher,
    next_rung,
    pareto_front,
    search,
    write_best,
)

FORK = multiprocessing.get_context("fork")
CPU32 = CPU("cpu", "float32", compiled=False)
BOUNDS = Bounds(parse_budget("20k"), multiple=1)
RECIPE = from_dict(
    {"epochs": 3, "batch_size": 80, "val": 400, "augment": ["crop"]},
    RECIPES["plain-sgd"],
)


def run_search(bounds, recipe, dataset, folder, **more):
    return search(bounds, recipe, dataset, InProcess(dataset, CPU32), folder, **more)


def read_trials(folder):
    """The trials of a study, by Optuna alone."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.load_study(study_name="search", storage=storage).trials


@pytest.fixture(scope="module")
def digits():
    """A quarter as wide and high, as they were scanned: 16 times as fast."""
    whole = load_data("digits")
    small = Split(
        whole.train.images[:, :, ::4, ::4].contiguous(), whole.train.labels, whole.train.classes
    )
    return replace(whole, train=small, test=None)


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "out"
    seen = []
    tried = run_search(BOUNDS, RECIPE, digits, folder, trials=6, watch=seen.append)
    return folder, tried, seen


def test_every_candidate_costs_between_99_and_100_percent_of_the_budget(found):
    _, tried, seen = found
    assert len(tried) == len(seen) == 6
    for c in tried:
        config = config_from_dict(c.model)
        assert c.params == count_params(config)
        assert 0.99 * 20_000 <= c.params <= 20_000
        assert c.macs == summarize(config, (3, 8, 8)).macs
        assert config.num_classes == 10


def test_finished_ones_come_first_and_the_best_of_them_leads(found):
    tried = found[1]
    assert tried[0].finished
    ranks = [(c.finished, c.accuracy) for c in tried]
    assert ranks == sorted(ranks, reverse=True)


def test_the_best_is_at_least_as_good_as_a_hand_made_network_of_its_size(found, digits, tmp_path):
    best = found[1][0]
    by_hand = fit_widths(ResNetConfig(), 2.0, BOUNDS)
    run = runs.create(tmp_path / "run", from_dict({"model": by_hand}, RECIPE), digits, CPU32)
    rows = []
    fit.complete(run, on_epoch=rows.append)
    assert best.accuracy >= rows[-1]["val_accuracy"]


def test_a_third_of_the_networks_is_promoted_at_each_rung(found):
    folder, tried, _ = found
    by_name = {c.name: c for c in tried}
    at_rung = []
    for trial in read_trials(folder):
        if "candidate" not in trial.user_attrs:
            continue
        c = by_name[trial.user_attrs["candidate"]["name"]]
        at_rung.append(trial.intermediate_values[1])
        best = sorted(at_rung, reverse=True)[: max(1, len(at_rung) // 3)]
        assert c.finished == (at_rung[-1] >= best[-1])
        assert c.epochs == (3 if c.finished else 1)
        rows = (folder / c.name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[0])["val_accuracy"] == at_rung[-1]
        assert json.loads(rows[-1])["val_accuracy"] == c.accuracy
        assert (folder / c.name / "checkpoint").exists() == c.finished
    assert len(at_rung) == 6


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, []), (2, [1]), (3, [1]), (9, [3]), (10, [3, 9]), (100, [33, 99])]
)
def test_rungs_are_a_third_of_the_epochs_and_three_times_the_last(epochs, rungs):
    found, done = [], 0
    while (done := next_rung(epochs, done)) is not None:
        found.append(done)
    assert found == rungs


def test_a_finished_search_is_only_read(found, digits):
    folder, tried, _ = found
    seen = []
    assert run_search(BOUNDS, RECIPE, digits, folder, trials=6, watch=seen.append) == tried
    assert seen == []


def test_other_bounds_need_another_folder(found, digits):
    with pytest.raises(UserError, match="give another --out"):
        run_search(limited("30_000"), RECIPE, digits, found[0], trials=6)


def test_an_interrupted_candidate_continues_from_its_checkpoint(
    found, digits, tmp_path, monkeypatch
):
    seen = found[2]
    real = fit.epochs

    def interrupted(run, stop, *more):
        yield next(real(run, stop, *more))
        stop.signal = signal.SIGINT

    monkeypatch.setattr(fit, "epochs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_search(BOUNDS, RECIPE, digits, tmp_path, trials=1)
    (place,) = (p.parent for p in tmp_path.glob("*/run.json"))
    assert place.name == seen[0].name  # the same seed proposes the same network first
    monkeypatch.setattr(fit, "epochs", real)
    (again,) = run_search(BOUNDS, RECIPE, digits, tmp_path, trials=1)
    assert again == seen[0]
    resumed = json.loads((place / "run.json").read_text())["resumed"]
    assert [r["step"] for r in resumed] == [(1437 - 400) // 80]  # after its first epoch


def test_sigterm_saves_the_network_that_trains_and_the_same_call_continues(
    found, digits, tmp_path, monkeypatch
):
    real, calls = executors.train, count()

    def train(job, load, device, halted):
        def terminated():
            if next(calls) == 4:  # the first call comes before the first step
                os.kill(os.getpid(), signal.SIGTERM)
            return halted()

        return real(job, load, device, terminated)

    monkeypatch.setattr(executors, "train", train)
    with pytest.raises(Stopped) as stop:
        run_search(BOUNDS, RECIPE, digits, tmp_path, trials=1)
    assert stop.value.number == signal.SIGTERM
    (again,) = run_search(BOUNDS, RECIPE, digits, tmp_path, trials=1)
    assert again == found[2][0]
    resumed = json.loads((tmp_path / again.name / "run.json").read_text())["resumed"]
    assert resumed[0]["step"] == 4


def test_a_live_process_keeps_its_networks_and_a_dead_ones_are_taken_over(digits, tmp_path):
    def share(name, trials):
        return _Searcher(tmp_path, BOUNDS, RECIPE, digits, {}, trials, 0, name)

    first, second = share("first", 2), share("second", 3)
    with locked(tmp_path / "second"):
        with locked(tmp_path / "first"):
            job = first.next_job()
            others = [second.next_job(), second.next_job()]
            assert second.next_job() is None  # three are being trained
            names = {one.folder.name for one in (job, *others)}
            assert len(names) == 3
            assert first.next_job() is None
        assert second.next_job() == job  # the first process has ended
        assert second.next_job() is None
    third = share("third", 4)
    third.study.ask()  # and a kill before anything is proposed
    with locked(tmp_path / "third"):
        taken = [third.next_job() for _ in range(4)]
        assert {one.folder.name for one in taken} > names
        assert third.next_job() is None
    assert [trial.state.name for trial in read_trials(tmp_path)].count("RUNNING") == 4


def limited(text: str) -> Bounds:
    return replace(BOUNDS, budget=parse_budget(text))


class Written:
    """An executor whose trainings take no time: it writes their rows, and who trained what."""

    retries, slots = 0, 1

    def __init__(self):
        self.running = []

    def submit(self, job):
        self.running.append(job)

    def events(self, halted):
        job = self.running.pop()
        accuracy, epochs = job.recipe.model.widths[0] / 1000, job.until_epoch or job.recipe.epochs
        rows = [{"epoch": i, "val_accuracy": accuracy} for i in range(1, epochs + 1)]
        (job.folder / CHECKPOINTS).mkdir(exist_ok=True)
        (job.folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows))
        with (job.folder.parent / "trained").open("a") as trained:
            trained.write(f"{job.folder.name} {job.until_epoch}\n")
        yield Event("finished", job)

    def stop(self):
        pass


def test_eight_processes_share_a_study_and_no_trial_is_lost_or_doubled(
    digits, tmp_path, monkeypatch
):
    def suggested(trial, bounds, train):
        counts = SimpleNamespace(params=1, macs=1, receptive_field=1)
        return ResNetConfig((trial.suggest_int("width", 1, 99),), (1,)), counts

    monkeypatch.setattr(library, "propose", suggested)
    asked = Bounds(), replace(RECIPE, epochs=3), digits, Written(), tmp_path, 24
    with warnings.catch_warnings():  # of threads, from 3.12 on: these children start none
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [FORK.Process(target=search, args=asked) for _ in range(8)]
        for child in children:
            child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    found = search(*asked)  # it only reads
    assert len({c.name for c in found}) == len(found) == 24
    told = read_trials(tmp_path)
    assert sum("candidate" in trial.user_attrs for trial in told) == 24
    assert not any(trial.state.name == "RUNNING" for trial in told)
    trained = (tmp_path / "trained").read_text().splitlines()
    ended = [f"{c.name} None" for c in found if c.finished]
    assert sorted(trained) == sorted([f"{c.name} 1" for c in found] + ended)


@pytest.mark.parametrize(
    "text",
    [
        "20k,macs=750k,min-receptive-field=20,receptive-field=60",
        "20k,memory=8K,memory-int8=2K",
        "params=1M,file=40K",
        "file-int8=20K",
    ],
)
def test_every_limit_is_kept(digits, tmp_path, text):
    bounds = limited(text)
    (c,) = run_search(bounds, replace(RECIPE, epochs=1), digits, tmp_path, trials=1)
    side = digits.train.images.shape[-1]
    costs = summarize(config_from_dict(c.model), (3, side, side))
    assert all(verdict.fits for verdict in bounds.budget.verdicts(costs))
    assert 19_800 <= c.params <= 20_000


@pytest.mark.parametrize("text", ["20k,macs=10", "20k,memory=1K"])
def test_bounds_that_nothing_keeps_are_said(digits, tmp_path, monkeypatch, text):
    monkeypatch.setattr("leanres.trials.search.PATIENCE", 3)
    with pytest.raises(UserError, match="widen the bounds"):
        run_search(limited(text), RECIPE, digits, tmp_path, trials=1)


def test_a_candidate_of_a_recipe_that_keeps_the_best_epoch_has_its_accuracy(digits, tmp_path):
    recipe = replace(RECIPE, keep_best=True, lr=2.0)
    (found,) = run_search(BOUNDS, recipe, digits, tmp_path, trials=1)
    info = read_info(tmp_path / found.name)
    rows, _ = read_history(tmp_path / found.name)
    assert found.accuracy == max(row["val_accuracy"] for row in rows)
    assert found.accuracy == pytest.approx(info["result"]["accuracy"])


def test_a_search_refuses_early_stopping(digits, tmp_path):
    with pytest.raises(UserError, match="leave out stop_after"):
        run_search(BOUNDS, replace(RECIPE, stop_after=1), digits, tmp_path)


def test_a_search_needs_val_images(digits, tmp_path):
    with pytest.raises(UserError, match="no"):
        run_search(BOUNDS, replace(RECIPE, val=0), digits, tmp_path)


@pytest.mark.parametrize("depths", [(1, 1, 1), (3, 4, 2), (2, 2, 2, 2), (5, 1, 6, 1)])
@pytest.mark.parametrize("growth", [1.0, 1.6, 2.2])
def test_widths_use_the_budget_up(depths, growth):
    shape = ResNetConfig((8,) * len(depths), depths)
    config = fit_widths(shape, growth, Bounds())
    if config is not None:  # a wide step of a deep stage may overshoot 1 %
        assert 4_950_000 <= count_params(config) <= 5_000_000
        assert all(w % 8 == 0 for w in config.widths)
        assert config.depths == depths
    finer = fit_widths(shape, growth, Bounds(multiple=1))
    assert finer is not None


def test_the_pareto_front_is_the_slow_definition():
    tried = [
        Candidate(f"n{i}", {}, 1, macs, 9, 3, accuracy, finished)
        for i, (macs, accuracy, finished) in enumerate(
            [(5, 0.9, True), (4, 0.9, True), (3, 0.7, True), (9, 0.95, True), (1, 0.99, False)]
        )
    ]
    done = [c for c in tried if c.finished]

    def beaten(c):
        return any(
            o.macs <= c.macs
            and o.accuracy >= c.accuracy
            and (o.macs, o.accuracy) != (c.macs, c.accuracy)
            for o in done
        )

    assert pareto_front(tried) == sorted((c for c in done if not beaten(c)), key=lambda c: c.macs)


def test_the_best_network_changes_nothing_but_what_was_set(tmp_path):
    model = ResNetConfig((16, 24, 40), (1, 2, 1), block="wide", num_classes=3)
    made = from_dict({"lr": 0.5, "mix": ["cutmix"], "schedule": "step"}, RECIPES["plain-sgd"])
    whole = replace(made, model=model)
    best = Candidate("n", whole.to_dict()["model"], 1, 1, 1, 1, 0.5, True)
    path = write_best(tmp_path, best, made, "speed")
    assert load_recipe(str(path)) == whole
    write_best(tmp_path, best, made, "plain-sgd")
    assert load_recipe(str(path)) == whole
    keys = tomllib.loads(path.read_text()).keys()
    assert keys == {"base", "lr", "mix", "schedule", "model"}


def test_a_network_that_diverges_is_passed_over(digits, tmp_path):
    wild = replace(RECIPE, lr=1e3, warmup=0.0, epochs=1, batch_size=20)
    (c,) = run_search(BOUNDS, wild, digits, tmp_path, trials=1)
    assert (c.finished, c.epochs, c.accuracy) == (False, 0, 0.0)


def test_a_damaged_study_is_one_line(digits, tmp_path):
    (tmp_path / "study.log").write_text("garbage\n")
    with pytest.raises(UserError, match="is damaged"):
        run_search(BOUNDS, RECIPE, digits, tmp_path)


def test_without_optuna_it_says_what_to_install(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leanres\[search\]'"):
        run_search(BOUNDS, RECIPE, digits, tmp_path)


def test_a_study_that_was_cut_off_anywhere_goes_on(found, digits, tmp_path):
    whole = (found[0] / "study.log").read_bytes()
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "study.log").write_bytes(whole[: len(whole) * number // 40])
        for owner in ("first", "second"):  # what the first writes can be read
            searcher = _Searcher(folder, BOUNDS, RECIPE, digits, {}, 7, 0, owner)
            with locked(folder / owner):
                assert searcher.next_job() is not None
        assert (folder / "study.log").read_bytes().endswith(b"\n")


def test_a_search_whose_study_lost_its_end_trains_those_networks_again(found, digits, tmp_path):
    shutil.copytree(found[0], tmp_path / "s")
    log = tmp_path / "s" / "study.log"
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2 + 7])
    again = run_search(BOUNDS, RECIPE, digits, tmp_path / "s", trials=4)
    assert len(again) >= 4
    assert again[0].finished
