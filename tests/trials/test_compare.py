"""Comparisons on the embedded digits; their differences are those of metrics.statistics."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanres.data.sources import load_data, locate
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.cost import count_params
from leanres.models.resnet import ResNetConfig
from leanres.runs.run_json import read_info
from leanres.training.device import CPU
from leanres.trials import compare as library
from leanres.trials.compare import COMPARISONS, Comparison, recipes, to_rows
from leanres.trials.executors import InProcess, LocalProcesses

RESULTS = Path(__file__).resolve().parents[2] / "results" / "compare"

TINY = {
    "model": {"family": "resnet", "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "epochs": 2,
    "val": 200,
    "batch_size": 200,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_gives_recipes_that_differ_only_in_what_it_asks(name):
    chosen = recipes(COMPARISONS[name], {})
    plain = [recipe.to_dict() for recipe in chosen.values()]
    asked = {key for settings in COMPARISONS[name].variants.values() for key in settings}
    for key in plain[0]:
        same = all(recipe[key] == plain[0][key] for recipe in plain)
        assert same or key in asked
    assert len({json.dumps(recipe) for recipe in plain}) == len(plain)


def runs(*accuracies):
    return [{"seed": seed, "accuracy": value} for seed, value in enumerate(accuracies)]


def test_the_difference_is_the_paired_interval_that_a_report_states_too():
    first, second = to_rows({"a": runs(0.930, 0.932, 0.931), "b": runs(0.936, 0.935, 0.939)})
    assert "difference" not in first
    d = second["difference"]
    assert 100 * d["mean"] == pytest.approx(0.57, abs=0.005)
    assert 100 * d["half_width"] == pytest.approx(0.63, abs=0.005)
    assert (d["n"], d["verdict"]) == (3, "not distinguishable at n = 3")


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [([0.1], "one seed: untested"), ([0.1, 0.11, 0.12], "better"), ([-0.1, -0.11], "worse")],
)
def test_the_verdict_is_in_words(pairs, verdict):
    _, row = to_rows({"a": runs(*[0.5] * len(pairs)), "b": runs(*[0.5 + d for d in pairs])})
    assert row["difference"]["verdict"] == verdict


def test_a_row_has_mean_and_sample_sd():
    (row,) = to_rows({"a": runs(0.8, 0.9, 0.7)}, {"a": 97.0})
    assert (row["variant"], row["reported"]) == ("a", 97.0)
    assert row["accuracies"] == {0: 0.8, 1: 0.9, 2: 0.7}
    assert row["mean"] == pytest.approx(np.mean([0.8, 0.9, 0.7]))
    assert row["sd"] == pytest.approx(np.std([0.8, 0.9, 0.7], ddof=1))
    (row,) = to_rows({"a": runs(0.8)})
    assert row["sd"] is None


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_committed_comparison_is_what_its_runs_give_today(file):
    """Seeds are strings in JSON."""
    then = json.loads(file.read_text())["rows"]
    now = to_rows({row["variant"]: row["runs"] for row in then})
    for old, new in zip(then, now, strict=True):
        assert old.keys() - {"reported"} == new.keys() - {"reported"}
        assert {int(seed): a for seed, a in old["accuracies"].items()} == new["accuracies"]
        assert old.get("difference", {}) == pytest.approx(new.get("difference", {}))
        assert (old["mean"], old["sd"]) == pytest.approx((new["mean"], new["sd"]))


def test_a_setting_that_the_variants_differ_in_is_refused():
    with pytest.raises(UserError, match="the variants differ in optimizer"):
        recipes(COMPARISONS["optimizers"], {"optimizer": "sgd"})


def test_a_network_that_is_given_is_the_one_that_variants_change():
    network = {"family": "resnet", "widths": [16, 32], "depths": [1, 1]}
    chosen = recipes(COMPARISONS["elements"], {"model": network})
    assert chosen["crop + flip"].model == ResNetConfig((16, 32), (1, 1))
    assert chosen["squeeze"].model == ResNetConfig((16, 32), (1, 1), squeeze=8)
    assert chosen["shake-shake"].model == ResNetConfig((11, 23), (1, 1), block="shake")
    with pytest.raises(UserError, match="changes a residual network"):
        recipes(COMPARISONS["depths"], {"model": "speednet"})
    with pytest.raises(UserError, match="'3,3,3,3' does not fit that model: 3 widths but 4 depths"):
        recipes(COMPARISONS["depths"], {"model": "resnet20"})


def test_a_shake_shake_network_has_the_parameters_of_the_plain_one():
    chosen = recipes(COMPARISONS["elements"], {})
    plain, shaken = (
        count_params(chosen[name].model.build()) for name in ("crop + flip", "shake-shake")
    )
    assert shaken == pytest.approx(plain, rel=0.05)


def in_process(dataset):
    return InProcess(dataset, CPU("cpu", "float32", compiled=False))


PAIR = Comparison(
    "which rate", {"low": {"lr": 1e-4}, "high": {"lr": 0.1}}, {"low": 1.0}, base="plain-sgd"
)
CHANGES = TINY | {"augment": [], "precision": "float32"}


def test_a_comparison_trains_once_and_continues_where_it_stopped(tmp_path, digits):
    begun: list[str] = []

    def watch(event):
        if event.kind == "started":
            begun.append(event.job.folder.name)

    def rows(seeds, **more):
        changes = CHANGES | more
        return library.compare(
            PAIR, digits, in_process(digits), tmp_path, seeds, changes, watch=watch
        )

    first = rows([0])
    both = rows([0, 1])
    assert begun == ["low-0", "high-0", "low-1", "high-1"]
    assert both[0]["accuracies"][0] == first[0]["accuracies"][0]
    assert both[0]["reported"] == 1.0
    assert both[1]["difference"]["mean"] == pytest.approx(both[1]["mean"] - both[0]["mean"])
    assert both[1]["mean"] > both[0]["mean"]
    with pytest.raises(UserError, match="another recipe"):
        rows([0], epochs=3)


@pytest.mark.usefixtures("_one_thread")
def test_two_at_once_equal_one_after_the_other_even_if_a_process_is_killed(
    tmp_path, digest, forked_workers
):
    changes = CHANGES | {"epochs": 3}
    beside, after = tmp_path / "a" / "beside", tmp_path / "b" / "after"
    processes, begun = LocalProcesses(2, ["cpu", "cpu"], threads=1), []

    def kill_the_first(event):
        begun.append(event)
        if len(begun) == 2:
            assert [job.folder.name for job in processes.running] == ["low-0", "high-0"]
            metrics = beside / "low-0" / "metrics.jsonl"
            while not metrics.exists() or not metrics.stat().st_size:  # its first epoch
                time.sleep(0.01)
            os.kill(processes._children[0].process.pid, signal.SIGKILL)

    data, where = load_data("digits", size=16), locate("digits", size=16)
    both = library.compare(
        PAIR, data, processes, beside, [0], changes, origin=where, watch=kill_the_first
    )
    one = library.compare(PAIR, data, in_process(data), after, [0], changes)
    assert [row["accuracies"] for row in both] == [row["accuracies"] for row in one]
    for name in ("low-0", "high-0"):
        assert digest(beside / name) == digest(after / name)
    assert read_info(beside / "low-0")["resumed"][0]["step"] > 0
    assert "resumed" not in read_info(beside / "high-0")
    assert (beside / "high-0.log").read_text().startswith("epoch 1  step 6  lr")


def test_a_training_that_diverges_is_named_after_the_others_have_ended(tmp_path, digits):
    pair = replace(PAIR, variants={"wild": {"lr": 1e3, "warmup": 0.0}, "calm": {"lr": 0.1}})
    with pytest.raises(UserError, match=r"1 of 2 are without a result; .*wild-0 diverged"):
        library.compare(pair, digits, in_process(digits), tmp_path, [0], CHANGES)
    assert "result" in json.loads((tmp_path / "calm-0" / "run.json").read_text())


def test_a_run_that_another_comparison_has_trained_is_taken_from_there(tmp_path, digits):
    seen: list[str] = []

    def rows(rates, folder, data):
        variants = {str(lr): {"lr": lr, "augment": []} for lr in rates}
        return library.compare(
            Comparison("which rate", variants, {}, base="plain-sgd"),
            data,
            in_process(data),
            tmp_path / folder,
            [0],
            TINY | {"epochs": 1},
            watch=lambda event: seen.append(f"{event.kind} {event.job.folder.parent.name}"),
        )

    first = rows([0.1, 0.01], "compare-a", digits)
    second = rows([0.1, 0.001], "compare-b", digits)
    assert seen[4:] == ["finished compare-a", "started compare-b", "finished compare-b"]
    assert second[0]["runs"] == first[0]["runs"]
    assert {"commit", "hardware", "train_seconds", "recipe"} <= first[0]["runs"][0].keys()
    fewer = Dataset("digits", digits.train.subset(range(900)), None, digits.test)
    rows([0.1], "compare-c", fewer)  # other images are another run
    assert seen[7:] == ["started compare-c", "finished compare-c"]
    with pytest.raises(UserError, match="was trained on other data"):
        rows([0.1], "compare-c", digits)
