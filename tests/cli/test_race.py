"""`leanres bench race`."""

from __future__ import annotations

import json

from leanres.trials.executors import InProcess

WORDS = [
    *("--data", "digits", "--threads", "1", "--device", "cpu"),
    *("--set", 'model={family="speednet", widths=[8, 16, 16]}'),
    *("--set", "precision=float32"),  # as the fixture `device` is, on any machine
    *("--set", "epochs=2"),
    *("--set", "batch_size=200"),
    *("--set", "progressive_resizing=[[0, 0.5], [0.5, 1.0]]"),
    *("--set", "label_smoothing=0.1"),
]


def test_a_cold_race_trains_each_seed_in_its_run_folder(
    leanres, tmp_path, monkeypatch, digits, device
):
    asked = []

    def executor(*given):
        asked.append(given)
        return InProcess(digits, device)

    monkeypatch.setattr("leanres.trials.executors.LocalProcesses", executor)
    out = tmp_path / "race.json"
    words = ["bench", "race", "--n", "2", "--seed", "4", "--out", out, "--runs", tmp_path, *WORDS]
    done = leanres(*words)
    assert done.code == 0, done.err
    assert asked == [(1, ["cpu"], 1)]
    assert "wall clock" in done.out
    assert done.out.endswith(f"{out} holds every run\n")
    entry = json.loads(out.read_text())
    assert [run["seed"] for run in entry["runs"]] == [4, 5]
    assert entry["counted"] == "cold: the whole process"
    assert (tmp_path / "race-5" / "run.json").exists()


def test_a_warm_race_continues_its_entry(leanres, tmp_path):
    out = tmp_path / "race.json"
    words = ["bench", "race", "speed", "--warm", "--n", "2", "--out", out, *WORDS]
    done = leanres(*words, "--target", "50")
    assert done.code == 0, done.err
    assert "n = 2: " in done.out
    assert "of seeds at 50 % or more" in done.out
    assert json.loads(out.read_text())["runs"][0]["recipe"]["label_smoothing"] == 0.1
    again = leanres(*words, "--json")
    assert json.loads(again.out)["n"] == 2
