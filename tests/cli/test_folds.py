"""`leanres train --folds`."""

from __future__ import annotations

import json

import pytest

WORDS = ("train", "digits", "--data", "digits", "--epochs", 3, "--folds", 2)


@pytest.mark.usefixtures("wide")
def test_folds_print_a_table_the_pooled_accuracy_and_suspects(leanres, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = leanres(*WORDS, *tiny)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "digits-2-folds"
    summary = json.loads((folder / "folds.json").read_text())
    lines = [line for line in done.out.splitlines() if not line.startswith("data ready")]
    assert lines[0] == "2 folds of digits -> runs/digits-2-folds"
    assert lines[1].split()[:4] == ["fold", "images", "accuracy", "NLL"]
    for line, row in zip(lines[2:4], summary["folds"], strict=True):
        share = f"{100 * row['accuracy']:.2f}"
        assert line.split()[:4] == [str(row["fold"]), str(row["n"]), share, "%"]
    assert [line.split()[0] for line in lines[4:6]] == ["mean", "sd"]
    assert f"{100 * summary['spread']['accuracy']['sd']:.2f} %" in lines[5]
    pooled = summary["pooled"]
    share = f"out-of-fold accuracy {100 * pooled['accuracy']:.2f} % of 1,437 images (95 % "
    assert lines[6].startswith(share)
    first = summary["label_errors"]["first"]
    assert lines[8].startswith(f"{summary['label_errors']['count']} likely label error")
    assert [line.split()[0] for line in lines[10:15]] == [row["file"] for row in first[:5]]
    assert "finished runs/digits-2-folds/fold-1: " in done.err
    for command in ("evaluate", "resume", "report"):
        of_folds = leanres(command, folder)
        assert f"{folder} holds the runs of a cross-validation: name one, as" in of_folds.err
    again = leanres(*WORDS, *tiny, "--json", "--at-once", 2, "--devices", "cpu")
    assert json.loads(again.out) == summary
    assert "started" not in again.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--measure", "val"), "leave out --measure val"),
        (("--track", "tensorboard"), "--track follows a single training"),
        (("--lr-max", "auto"), "give --lr-max a number"),
        (("--devices", "cpu,gpu"), "'gpu' is not usable here"),
        (("--folds", "1"), "--folds 1: give a whole number from 2 to 1000"),
        (("--set", "stop_after=1", "--set", "val=0"), "--set val=0.1"),
    ],
)
def test_what_does_not_fit_folds_is_one_line(leanres, mistake, tiny, tmp_path, words, part):
    mistake(leanres(*WORDS, *tiny, "--out", tmp_path / "out", *words), part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("--at-once", 2), ("--devices", "cpu")])
def test_options_of_many_trainings_are_refused_for_one(leanres, mistake, tmp_path, words):
    done = leanres("train", "digits", "--data", "digits", "--out", tmp_path / "out", *words)
    mistake(done, f"{words[0]} is for many trainings: give --folds too, or leave it out")
