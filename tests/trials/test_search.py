"""Search: every candidate is within its bounds, the best is found again, a kill loses nothing."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from leanres.data.sources import load_data
from leanres.data.split import Split
from leanres.errors import UserError
from leanres.models.cost import count_params, summarize
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_from_dict
from leanres.runs import run as runs
from leanres.training.device import Device
from leanres.training.recipe import from_dict
from leanres.training.recipes import RECIPES
from leanres.trials.search import (
    Bounds,
    Candidate,
    fit_widths,
    pareto_front,
    search,
)

ENGINE = Device("cpu", "float32", compiled=False)
BOUNDS = Bounds(params=20_000, multiple=1)
RECIPE = from_dict(
    {"epochs": 3, "batch_size": 40, "val": 400, "augment": ["crop"]},
    RECIPES["plain-sgd"],
)


@pytest.fixture(scope="module")
def digits():
    """Half as wide and high, which is twice as large as they were scanned: four times as fast."""
    whole = load_data("digits")
    small = Split(
        whole.train.images[:, :, ::2, ::2].contiguous(), whole.train.labels, whole.train.classes
    )
    return replace(whole, train=small, test=None)


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "out"
    seen = []
    tried = search(BOUNDS, RECIPE, digits, ENGINE, folder, trials=6, watch=seen.append)
    return folder, tried, seen


def test_every_candidate_costs_between_99_and_100_percent_of_the_budget(found):
    _, tried, seen = found
    assert len(tried) == len(seen) == 6
    for c in tried:
        config = config_from_dict(c.model)
        assert c.params == count_params(config)
        assert 0.99 * 20_000 <= c.params <= 20_000
        assert c.macs == summarize(config, (3, 16, 16)).macs
        assert config.num_classes == 10


def test_finished_ones_come_first_and_the_best_of_them_leads(found):
    tried = found[1]
    assert tried[0].finished
    ranks = [(c.finished, c.accuracy) for c in tried]
    assert ranks == sorted(ranks, reverse=True)


def test_the_best_is_at_least_as_good_as_a_hand_made_network_of_its_size(found, digits, tmp_path):
    best = found[1][0]
    by_hand = fit_widths(ResNetConfig(), 2.0, BOUNDS)
    run = runs.create(tmp_path / "run", from_dict({"model": by_hand}, RECIPE), digits, ENGINE)
    with runs.Stop() as stop:
        *_, last = runs.epochs(run, stop, lambda state: None)
    assert best.accuracy >= last["val_accuracy"]


def test_a_finished_search_is_only_read(found, digits):
    folder, tried, _ = found
    seen = []
    assert search(BOUNDS, RECIPE, digits, ENGINE, folder, trials=6, watch=seen.append) == tried
    assert seen == []


def test_other_bounds_need_another_folder(found, digits):
    with pytest.raises(UserError, match="give another --out"):
        search(replace(BOUNDS, params=30_000), RECIPE, digits, ENGINE, found[0], trials=6)


def test_an_interrupted_candidate_goes_on_from_its_checkpoint(found, digits, tmp_path, monkeypatch):
    seen = found[2]
    real = runs.epochs

    def interrupted(run, stop, watch):
        yield next(real(run, stop, watch))
        stop.signal = 2

    monkeypatch.setattr(runs, "epochs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(BOUNDS, RECIPE, digits, ENGINE, tmp_path, trials=1)
    (place,) = (p.parent for p in tmp_path.glob("*/run.json"))
    assert place.name == seen[0].name  # the same seed proposes the same network first
    monkeypatch.setattr(runs, "epochs", real)
    (again,) = search(BOUNDS, RECIPE, digits, ENGINE, tmp_path, trials=1)
    assert again == seen[0]
    resumed = json.loads((place / "run.json").read_text())["resumed"]
    assert [r["step"] for r in resumed] == [(1437 - 400) // 40]  # after its first epoch


def test_bounds_on_macs_and_field_are_kept(digits, tmp_path):
    bounds = replace(BOUNDS, macs=3_000_000, receptive_field=(20, 60))
    (c,) = search(bounds, replace(RECIPE, epochs=1), digits, ENGINE, tmp_path, trials=1)
    assert c.macs <= 3_000_000
    assert 20 <= c.receptive_field <= 60


def test_bounds_that_nothing_keeps_are_said(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("leanres.trials.search.PATIENCE", 3)
    with pytest.raises(UserError, match="widen the bounds"):
        search(replace(BOUNDS, macs=10), RECIPE, digits, ENGINE, tmp_path, trials=1)


def test_a_search_needs_val_images(digits, tmp_path):
    with pytest.raises(UserError, match="no"):
        search(BOUNDS, replace(RECIPE, val=0), digits, ENGINE, tmp_path)


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


def test_the_command_line_searches(leanres, tmp_path):
    words = ["search", "--budget", "20k", "--multiple", "1", "--trials", "2", "--epochs", "1"]
    words += ["--data", "digits", "--set", "val=400", "--set", "batch_size=60", "--device", "cpu"]
    done = leanres(*words, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    assert "Pareto" in done.out
    command = shlex.split(done.out.splitlines()[-1], comments=True)
    given = ["--set", "val=400", "--set", "batch_size=60", "--data", "digits"]
    assert command[:-2] == ["leanres", "train", "plain-sgd", *given]
    assert command[-1].startswith('model={family="resnet"')
    again = leanres(*words, "--out", tmp_path / "s", "--json")
    assert len(json.loads(again.out)) == 2


def test_a_network_that_diverges_is_passed_over(digits, tmp_path):
    wild = replace(RECIPE, lr=1e3, warmup=0.0, epochs=1)
    (c,) = search(BOUNDS, wild, digits, ENGINE, tmp_path, trials=1)
    assert (c.finished, c.epochs, c.accuracy) == (False, 0, 0.0)


def test_a_damaged_study_is_one_line(digits, tmp_path):
    (tmp_path / "study.log").write_text("garbage\n")
    with pytest.raises(UserError, match="is damaged"):
        search(BOUNDS, RECIPE, digits, ENGINE, tmp_path)


def test_a_field_that_is_no_pair_is_one_line(leanres):
    done = leanres("search", "--field", "16")
    assert done.code == 2
    assert "give least and most in pixels" in done.err


def test_without_optuna_it_says_what_to_install(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leanres\[search\]'"):
        search(BOUNDS, RECIPE, digits, ENGINE, tmp_path)
