"""`leanres compare` prints a table or JSON, and refuses mistakes before any training."""

from __future__ import annotations

import json

import pytest

from leanres.cli.compare import parse_seeds
from leanres.errors import UserError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--measure", "train"], "--measure train: give test or val"),
        (["--set", "val=0"], "measure val: the data has no such split"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_training(leanres, tmp_path, more, message):
    words = ["compare", "schedules", "--data", "digits", "--out", tmp_path, "--epochs", 1, *more]
    done = leanres(*words)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_comparison_is_printed_as_a_table_or_as_json(leanres, tmp_path):
    words = ["compare", "schedules", "--data", "digits", "--seeds", "0", "--out", tmp_path]
    model = "model={family='resnet', widths=[8, 8, 8, 8], depths=[1, 1, 1, 1]}"
    words += ["--set", model, "--set", "val=200", "--epochs", "1", "--set", "augment=[]"]
    words += ["--devices", "cpu"]
    table = leanres(*words)
    assert table.code == 0, table.err
    assert "one seed: untested" in table.out
    assert "the baseline" in table.out
    assert f"started  {tmp_path}/step-0\nfinished {tmp_path}/step-0: " in table.err
    again = leanres(*words, "--json")
    assert [row["variant"] for row in json.loads(again.out)["rows"]] == ["cosine", "step"]
    assert "started" not in again.err


def test_seeds_are_different_whole_numbers():
    assert parse_seeds("2,0,10") == [2, 0, 10]
    for text in ("", "1,x", "1,1", "1.5"):
        with pytest.raises(UserError, match=r"--seeds .*: give different whole numbers, .* 0,1,2"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "part"),
    [(["optimisers"], "did you mean 'optimizers'"), (["depths", "--seeds", "a"], "whole numbers")],
)
def test_a_mistake_is_one_line(leanres, mistake, words, part):
    mistake(leanres("compare", *words), part)
