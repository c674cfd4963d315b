"""`leanres models` and `leanres summary`."""

from __future__ import annotations

import json

import pytest

from leanres.models.zoo import MODELS


def test_models_as_json_gives_an_object_per_model(leanres):
    rows = json.loads(leanres("models", "--json").out)
    assert {row["name"] for row in rows} == set(MODELS)
    custom = next(row for row in rows if row["name"] == "custom-resnet")
    assert (custom["params"], custom["receptive_field"]) == (4_058_122, 38)
    assert custom["chained_receptive_field"] == 122
    assert all(row["macs"] > 0 for row in rows)
    speed = next(row for row in rows if row["name"] == "speednet")
    assert (speed["reported"], speed["measured"]["n"]) == (None, 10)


@pytest.mark.usefixtures("wide")
def test_models_are_listed_with_costs_fields_and_accuracies(leanres):
    lines = [line.split() for line in leanres("models").out.splitlines()]
    assert " ".join(lines[0]) == (
        "model params MMACs receptive field chained receptive field reported % measured % source"
    )
    assert [line[0] for line in lines[1 : len(MODELS) + 1]] == list(MODELS)
    row = next(line for line in lines if line[:1] == ["custom-resnet"])
    shown = "custom-resnet 4,058,122 290.4 38 122 85.16 91.33 (n=1) project report; as its code ran"
    assert " ".join(row) == shown


@pytest.mark.usefixtures("wide")
def test_summary_says_what_each_layer_and_the_whole_network_cost(leanres):
    out = leanres("summary", "resnet26-97").out
    assert "resnet26-97: 4,978,810 params, " in out
    assert "within the budget: params 4,978,810 <= 5,000,000" in out
    assert "18.99 MiB float32" in out
    assert "receptive field 169 px" in out
    assert "chained receptive field 813 px" in out
    assert "source: project report" in out
    first = next(line.split() for line in out.splitlines() if line.startswith("stem.0"))
    assert first == ["stem.0", "Conv2d", "128x32x32", "3,456", "3,538,944", "3", "3"]
    assert "NOT within the budget" in leanres("summary", "resnet18", "--budget", "5M").out
    detail = json.loads(leanres("summary", "custom-resnet", "--json").out)
    assert detail["within_budget"] is True
    assert sum(row["params"] for row in detail["rows"]) == 4_058_122


@pytest.mark.parametrize(("budget", "within"), [(269_722, True), (269_721, False)])
def test_a_budget_is_met_up_to_the_last_parameter(leanres, budget, within):
    verdict = f"within the budget: params 269,722 {'<=' if within else '>'} {budget:,}"
    assert verdict in leanres("summary", "resnet20", "--budget", budget).out
    found = json.loads(leanres("summary", "resnet20", "--budget", budget, "--json").out)
    assert found["within_budget"] == within


INIT = ("train", "--data", "digits", "--set")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("summary", "."), ". holds no network: give a run folder"),
        ((*INIT, "init=."), "init = '.': . holds no network: give a run folder or a .safetensors"),
        (("summary", "no/run"), "no/run does not exist: give a run folder, a weights file or"),
        ((*INIT, "init=no/run"), "no/run does not exist: give a run folder or a .safetensors file"),
        (("summary", "gone.safetensors"), "gone.safetensors does not exist"),
        ((*INIT, "init=gone.safetensors"), "gone.safetensors does not exist"),
        (("summary", "resnet21"), "no model 'resnet21'; did you mean 'resnet"),
        ((*INIT, "init=resnet21"), "resnet21 does not exist: give a run folder or a .safetensors"),
    ],
)
def test_what_is_no_network_is_named(leanres, mistake, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    mistake(leanres(*words), problem)
