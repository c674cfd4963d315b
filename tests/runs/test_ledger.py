"""The ledger: rows of run folders and results, and what is done with them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from leanres.errors import UserError
from leanres.metrics.classification import METRICS, Metric
from leanres.runs.ledger import (
    columns,
    diff_rows,
    differences,
    entry_sum,
    matching,
    read_ledger,
    read_row,
    sort_rows,
    to_csv,
)
from leanres.runs.manifest import write_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """runs/ with three runs (one without a result), a folder that is none, and results/."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    results.mkdir()
    outcomes = {"a": (0.91, 20), "b": (0.93, 30), "c": (None, 40)}
    for day, (name, (accuracy, epochs)) in enumerate(outcomes.items(), 1):
        (runs / name).mkdir(parents=True)
        info = {
            "started": f"2026-11-0{day}T10:00:00+0000",
            "commit": "abc",
            "recipe": {"model": "resnet20", "epochs": epochs, "lr": 0.1, "augment": ["flip"]},
            "data": {"name": "cifar10"},
            "hardware": {"device": "cpu"},
        }
        if accuracy:
            info["result"] = {"split": "test", "accuracy": accuracy, "n": 10_000, "params": 5}
        write_files(runs / name, {"run.json": json.dumps(info).encode()})
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    (runs / "data").mkdir()
    claim = {
        "recipe": {"model": "speednet", "epochs": 10, "lr": 0.1},
        "started": "2026-10-01T00:00:00+0000",
        "val": {"accuracy": 0.92},
        "test": {"accuracy": 0.9206, "n": 10_000},
    }
    (results / "claim.json").write_text(json.dumps(claim | {"sha256": entry_sum(claim)}))
    (results / "raw.json").write_text("[1, 2]")
    return runs, results


def names(rows) -> list[str]:
    return [row["name"] for row in rows]


def test_runs_and_results_are_listed_oldest_first_and_others_noted(folders):
    rows, notes = read_ledger(*folders)
    assert names(rows) == ["claim", "a", "b", "c"]
    assert [row["status"] for row in rows] == ["measured", "measured", "measured", "unfinished"]
    assert (rows[0]["accuracy"], rows[0]["split"]) == (0.9206, "test")
    assert rows[1]["lr"] == 0.1
    assert len(notes) == 2
    assert "broken/run.json is not a run" in notes[0]
    assert read_ledger(folders[0] / "no", folders[1] / "no") == ([], [])


def test_an_edited_run_and_an_edited_result_are_said_to_be(folders):
    runs, results = folders
    for file in (runs / "a" / "run.json", results / "claim.json"):
        file.write_text(file.read_text().replace("0.9", "0.8"))
    (runs / "b" / "manifest.json").unlink()
    rows, notes = read_ledger(*folders)
    assert [row["accuracy"] for row in rows] == [0.8206, 0.81, 0.93, None]
    assert len(notes) == 5
    for file in (runs / "a" / "run.json", runs / "b" / "manifest.json", results / "claim.json"):
        assert any(note.startswith(f"{file} ") and "was edited" in note for note in notes)


def test_a_committed_result_of_a_run_that_is_there_is_one_row(folders):
    runs, results = folders
    info = json.loads((runs / "a" / "run.json").read_text())
    run = {"seed": 0, **info["result"], "started": info["started"], "commit": "abc"}
    info["recipe"]["seed"] = 0
    (runs / "a" / "run.json").write_text(json.dumps(info))
    later = {"accuracy": 0.92}  # the same run, extended and measured again: another result
    seeds = [run | {"recipe": info["recipe"]}, run | {"recipe": info["recipe"]} | later]
    (results / "race.json").write_text(json.dumps({"runs": seeds}))
    assert names(read_ledger(runs, results)[0]) == ["claim", "a", "race:0", "b", "c"]


def test_a_repeated_run_has_a_row_per_seed(folders):
    claim = json.loads((folders[1] / "claim.json").read_text())
    recipe = claim["recipe"]
    seeds = [
        {"seed": seed, "recipe": recipe | {"seed": seed}, "accuracy": 0.94 + seed / 100}
        for seed in (4, 1)
    ]
    file = folders[1] / "seeds.json"
    file.write_text(json.dumps({"runs": seeds, "summary": {"n": 2}}))
    rows = [row for row in read_ledger(*folders)[0] if row["path"] == str(file)]
    assert [(r["name"], r["seed"], r["split"]) for r in rows] == [
        ("seeds:4", 4, "test"),
        ("seeds:1", 1, "test"),
    ]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.98, 0.95])
    assert read_row(file) == rows[0]


def test_the_committed_results_are_readable():
    rows, notes = read_ledger(ROOT / "nothing", ROOT / "results")
    assert not notes
    assert all(row["accuracy"] > 0.5 for row in rows)
    first = next(row for row in rows if row["name"] == "first-cpu")
    assert (first["model"], first["epochs"]) == ("speednet", 10)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("model=resnet20", ["a", "b", "c"]),
        ("model=ResNet20", ["a", "b", "c"]),
        ("accuracy>0.92", ["claim", "b"]),
        ("epochs>=30", ["b", "c"]),
        ("epochs < 20", ["claim"]),
        ("name!=a", ["claim", "b", "c"]),
        ("status=unfinished", ["c"]),
        ('augment=["flip"]', ["a", "b", "c"]),
    ],
)
def test_conditions_keep_the_rows_that_fit(folders, condition, kept):
    assert names(matching(read_ledger(*folders)[0], condition)) == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("accuracy", "give key=value"),
        ("acuracy>0.9", "did you mean 'accuracy'"),
        ("epochs>many", "'many' is not a number"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(folders, condition, message):
    with pytest.raises(UserError, match=message):
        matching(read_ledger(*folders)[0], condition)


def test_rows_are_sorted_with_the_empty_ones_last(folders):
    rows = read_ledger(*folders)[0]
    assert names(sort_rows(rows, "-accuracy")) == ["b", "claim", "a", "c"]
    assert names(sort_rows(rows, "accuracy")) == ["a", "claim", "b", "c"]
    assert names(sort_rows(rows, "model"))[-1] == "claim"
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        sort_rows(rows, "epoch")


def test_csv_holds_every_column_of_every_run(folders):
    rows = read_ledger(*folders)[0]
    table = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [line["name"] for line in table] == names(rows)
    assert list(table[0]) == columns(rows)
    assert table[1]["augment"] == '["flip"]'
    assert table[3]["accuracy"] == ""


def test_a_difference_names_what_is_on_either_side(folders):
    runs, results = folders
    a, b = read_row(runs / "a"), read_row(runs / "b" / "run.json")
    recipe, outcome = diff_rows(a, b)
    assert recipe == [("epochs", "20", "30")]
    assert outcome == [("accuracy", "0.91", "0.93")]
    assert diff_rows(a, a) == ([], [])
    assert ("augment", '["flip"]', "-") in diff_rows(a, read_row(results / "claim.json"))[0]
    assert differences({"x": 1}, {"y": None}) == [("x", "1", "-")]
    for place in (runs / "data", runs / "nowhere"):
        with pytest.raises(UserError, match="is neither a run folder"):
            read_row(place)
    with pytest.raises(UserError, match="is not a run"):
        read_row(results / "raw.json")


def test_a_metric_that_is_added_is_a_column_and_part_of_the_outcome(folders, monkeypatch):
    monkeypatch.setitem(METRICS, "top5", Metric("top 5", str))
    runs, _ = folders
    for name, share in (("a", 0.99), ("b", 0.98)):
        info = json.loads((runs / name / "run.json").read_text())
        info["result"]["top5"] = share
        (runs / name / "run.json").write_text(json.dumps(info))
    rows, _ = read_ledger(*folders)
    assert [row["top5"] for row in rows] == [None, 0.99, 0.98, None]
    assert columns(rows).index("top5") < columns(rows).index("path")
    assert ("top5", "0.99", "0.98") in diff_rows(rows[1], rows[2])[1]


def test_listing_loads_no_torch():
    code = "import sys, leanres.runs.ledger, leanres.runs.tracking; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
