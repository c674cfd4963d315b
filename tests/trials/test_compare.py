"""Comparisons on the embedded digits; their arithmetic against scipy's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from leanres.cli import main
from leanres.data.sources import load_data
from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.models.cost import count_params
from leanres.models.resnet import ResNetConfig
from leanres.training.device import Device
from leanres.trials import compare as library
from leanres.trials.compare import COMPARISONS, Comparison, Outcome, difference, recipes

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


def test_the_difference_is_scipys_paired_t_interval():
    pairs = [0.01, 0.03, -0.01, 0.02]
    d = difference(pairs)
    oracle = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert d.mean - d.half_width == pytest.approx(oracle.low)
    assert d.mean + d.half_width == pytest.approx(oracle.high)
    assert d.verdict == "not distinguishable at n = 4"


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [([0.1], "n = 1: no spread known"), ([0.1, 0.11, 0.12], "better"), ([-0.1, -0.11], "worse")],
)
def test_the_verdict_is_in_words(pairs, verdict):
    assert difference(pairs).verdict == verdict


def test_an_outcome_has_mean_and_sample_sd():
    outcome = Outcome("a", {0: 0.8, 1: 0.9, 2: 0.7}, None)
    assert outcome.mean == pytest.approx(np.mean([0.8, 0.9, 0.7]))
    assert outcome.sd == pytest.approx(np.std([0.8, 0.9, 0.7], ddof=1))
    assert Outcome("a", {0: 0.8}, None).sd is None


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


def test_a_comparison_trains_once_and_goes_on_where_it_stopped(tmp_path):
    pair = Comparison(
        "which rate", {"low": {"lr": 1e-4}, "high": {"lr": 0.1}}, {"low": 1.0}, base="plain-sgd"
    )
    begun: list[str] = []

    def watch(place, variant, seed, done):
        if not done:
            begun.append(f"{variant} {seed}")

    def outcomes(seeds):
        device = Device("cpu", "float32", compiled=False)
        changes = TINY | {"augment": []}
        return library.compare(pair, load_data("digits"), device, tmp_path, seeds, changes, watch=watch)

    first = outcomes([0])
    both = outcomes([0, 1])
    assert begun == ["low 0", "high 0", "low 1", "high 1"]
    assert both[0].accuracies[0] == first[0].accuracies[0]
    rows = list(library.to_rows(both))
    assert rows[1]["difference"]["mean"] == pytest.approx(both[1].mean - both[0].mean)
    assert both[1].mean > both[0].mean
    with pytest.raises(UserError, match="another recipe"):
        library.compare(
            pair,
            load_data("digits"),
            Device("cpu", "float32", compiled=False),
            tmp_path,
            [0],
            TINY | {"augment": [], "epochs": 3},
        )


def test_a_run_that_another_comparison_has_trained_is_taken_from_there(tmp_path):
    begun: list[str] = []

    def outcomes(rates, folder, data):
        variants = {str(lr): {"lr": lr, "augment": []} for lr in rates}
        return library.compare(
            Comparison("which rate", variants, {}, base="plain-sgd"),
            data,
            Device("cpu", "float32", compiled=False),
            tmp_path / folder,
            [0],
            TINY | {"epochs": 1},
            watch=lambda place, variant, seed, done: begun.append(f"{place.parent.name} {done}"),
        )

    digits = load_data("digits")
    first = outcomes([0.1, 0.01], "compare-a", digits)
    second = outcomes([0.1, 0.001], "compare-b", digits)
    assert begun[2:] == ["compare-a True", "compare-b False"]
    assert second[0].runs == first[0].runs
    assert {"commit", "hardware", "train_seconds", "recipe"} <= first[0].runs[0].keys()
    fewer = Dataset("digits", digits.train.subset(range(900)), None, digits.test)
    outcomes([0.1], "compare-c", fewer)  # other images are another run
    assert begun[4:] == ["compare-c False"]
    with pytest.raises(UserError, match="was trained on other data"):
        outcomes([0.1], "compare-c", digits)


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--measure", "train"], "give test or val"), (["--set", "val=0"], "measure val: there are")],
)
def test_what_cannot_be_measured_is_refused_before_any_training(leanres, tmp_path, more, message):
    words = ["compare", "schedules", "--data", "digits", "--out", tmp_path, "--epochs", 1, *more]
    done = leanres(*words)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    words = ["compare", "schedules", "--data", "digits", "--seeds", "0", "--out", str(tmp_path)]
    model = "model={family='resnet', widths=[8, 8, 8, 8], depths=[1, 1, 1, 1]}"
    words += ["--set", model, "--set", "val=200", "--epochs", "1", "--set", "augment=[]"]
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main([*words, *extra])
        assert not end.value.code
        out = capsys.readouterr().out
        if extra:
            rows = json.loads(out)["rows"]
            assert [row["variant"] for row in rows] == ["cosine", "step"]
        else:
            assert "n = 1: no spread known" in out
            assert "the yardstick" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [(["optimisers"], "did you mean 'optimizers'"), (["depths", "--seeds", "a"], "whole numbers")],
)
def test_mistakes_are_one_line(words, part, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", *words])
    assert end.value.code == 2
    assert part in capsys.readouterr().err
