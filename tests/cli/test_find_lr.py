"""`leanres find-lr`: what it draws, prints and refuses; `leanres train --lr-max auto`."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from PIL import Image

from leanres.cli.find_lr import train_command
from leanres.lr_finder.analysis import RULES, LRRange, LRSweep
from leanres.lr_finder.finder import IMAGES
from leanres.training.recipe import parse_setting
from leanres.training.recipes import RECIPES

SMALL = (
    *("find-lr", "digits", "--data", "digits", "--lr-min", 1e-3, "--steps", 32),
    *("--set", "model={family='speednet', widths=[8, 16]}", "--set", "batch_size=64"),
    *("--set", "label_smoothing=0", "--set", "progressive_resizing=[]", "--set", "augment=[]"),
    *("--set", "val=0"),
)


def test_find_lr_draws_a_chart_a_table_and_says_how_to_train_with_it(
    leanres, tmp_path, monkeypatch
):
    words = [*SMALL, "--seed", 1, "--set", "lr=0.1", "--out", tmp_path / "a" / "lr.png"]
    monkeypatch.setattr("sys.argv", ["leanres", *map(str, words)])
    code, out, err = leanres(*words)
    assert code == 0, err
    assert "━" in out
    assert "\x1b" not in out  # plain where nobody watches
    assert all(f"\n{rule.capitalize()} " in out for rule in RULES)
    last = out.splitlines()[-1]
    assert last.startswith(
        "train with it: leanres train digits --data digits --seed 1 --set 'model"
    )
    assert " --set lr=0." in last
    assert "--set head_lr=" in last
    assert "lr=0.1 " not in last
    assert not {"--lr-min", "--steps", "--out"} & set(shlex.split(last))
    with Image.open(tmp_path / "a" / "lr.png") as picture:
        assert picture.size == (1200, 720)


def test_the_command_to_train_with_has_the_words_that_were_typed():
    found = LRRange((), (), (), "", {}, lr_min=1.234e-4, lr_max=0.0123, rules={}, reasons={})
    typed = ["mine.toml", "--lr-min=1e-5", "--set", "lr = 3", "--mode", "linear"]
    typed += ["--set=momentum=0.8", "--lr-max", "1", "--json", "--data", "a b", "--strict"]
    settings = ["lr = 3", "momentum=0.8"]
    words = shlex.split(train_command(typed, settings, found, RECIPES["plain-sgd"]))
    assert words == [
        *("leanres", "train", "mine.toml", "--data", "a b", "--strict"),
        *("--set", "momentum=0.8", "--set", "lr=0.012"),
    ]


def test_a_one_cycle_schedule_gets_the_lowest_lr_too():
    found = LRRange((), (), (), "", {}, lr_min=1.234e-4, lr_max=0.0123, rules={}, reasons={})
    schedule = ("one-cycle", {"peak_epoch": 12.25, "annihilation": True})
    recipe = replace(RECIPES["assignment-s9"], schedule=schedule)
    *_, lr, _, word = shlex.split(train_command(["x"], [], found, recipe))
    assert lr == "lr=0.012"
    key, value = parse_setting(word)
    assert (key, value[0]) == ("schedule", "one-cycle")
    assert value[1] == {"peak_epoch": 12.25, "annihilation": True, "lr_min": 0.00012}


def test_find_lr_as_json_is_the_librarys_answer(leanres):
    code, out, err = leanres(*SMALL, "--json", "--set", "optimizer=adam", "--mode", "exponential")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["lr_min"] < facts["lr_max"]
    assert set(facts["suggestions"]) == set(RULES)
    assert facts["rules"]["lr_min"] == "onset"
    assert facts["rules"]["lr_max"] in ("minimum", "steepest")
    assert len(facts["lrs"]) == len(facts["losses"])


def test_help_names_the_defaults_of_the_library(leanres):
    _, out, _ = leanres("find-lr", "--help")
    words = " ".join(out.split())
    sweep = LRSweep()
    for value in (f"{sweep.lr_min:g}.", f"{sweep.lr_max:g}.", f"{sweep.steps} to 1,000, to see"):
        assert f"default: {value}" in words
    assert f"{IMAGES:,} images" in words
    assert f"{sweep.mode} (default)" in words


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lr-min", 2, "--lr-max", 1], "lr_min = 2, lr_max = 1: give lr_min (--lr-min) below"),
        (["--mode", "log"], "no mode 'log'"),
        (["--steps", 3], "give a whole number from 16 to 100000"),
        (["--out", "lr.jpeg2"], "ends in .png"),
        (["--set", "lrr=1"], "did you mean 'lr'"),
        (["--lr-min", 1e-12, "--lr-max", 1e-11], "give a higher lr_max (--lr-max)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(leanres, words, part):
    code, _, err = leanres(*SMALL, *words)
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert (code, len(lines)) == (2, 1), err
    assert part in lines[0]


ONE_CYCLE = ("train", *SMALL[1:4], *SMALL[8:], "--set", "optimizer=sgd", "--epochs", 2)
ONE_CYCLE += ("--set", 'schedule=["one-cycle", {peak_epoch = 1}]', "--no-report")


def test_training_may_find_its_lr_first_and_records_it(leanres, tmp_path):
    code, out, err = leanres(*ONE_CYCLE, "--lr-max", "auto", "--out", tmp_path / "run")
    assert code == 0, err
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    found = info["origin"]["lr_range"]
    assert set(found["suggestions"]) == set(RULES)
    rule = found["rules"]["lr_max"]
    assert info["recipe"]["lr"] == found["lr_max"] == found["suggestions"][rule]
    assert info["recipe"]["schedule"][1] == {"peak_epoch": 1, "lr_min": found["lr_min"]}
    assert f"lr_max {found['lr_max']:.2g} ({rule}): " in out


def test_training_starts_as_if_there_had_been_no_test(leanres, tmp_path):
    leanres(*ONE_CYCLE, "--lr-max", "auto", "--out", tmp_path / "found")
    recipe = json.loads((tmp_path / "found" / "run.json").read_text())["recipe"]
    low = f'schedule=["one-cycle", {{peak_epoch = 1, lr_min = {recipe["schedule"][1]["lr_min"]}}}]'
    given = ("--lr-max", recipe["lr"], "--set", low, "--out", tmp_path / "given")
    others = [word for word in ONE_CYCLE if "schedule" not in str(word)]
    others.pop(others.index("--no-report") - 1)  # the schedule's --set
    assert leanres(*others, *given).code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("found", "given")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lr-max", "high"], "--lr-max high: give auto, or a number"),
        (["--lr-max", "-1"], "lr = -1"),
        (["--lr-max", "auto", "--set", "precision=bf"], "precision"),
        (["--lr-max", "auto", "--set", "lr=1e-9"], "lr = 1e-09 and --lr-max auto were both given"),
    ],
)
def test_a_wrong_lr_max_is_one_line(leanres, tmp_path, words, part):
    code, _, err = leanres(*ONE_CYCLE, *words, "--out", tmp_path / "run")
    assert (code, part in err.splitlines()[-1]) == (2, True), err
    assert not (tmp_path / "run").exists()
