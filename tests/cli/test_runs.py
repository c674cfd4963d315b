"""`leanres runs` and `leanres runs diff`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from leanres.runs.ledger import entry_sum
from leanres.runs.manifest import write_files


@pytest.fixture
def places(tmp_path) -> tuple[str, ...]:
    """Options that name a folder with three runs and one damaged, and one with a result."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    results.mkdir()
    for day, (name, accuracy) in enumerate({"a": 0.91, "b": 0.93, "c": None}.items(), 1):
        (runs / name).mkdir(parents=True)
        recipe = {"model": "resnet20", "epochs": 10 * day, "lr": 0.1, "augment": ["flip"]}
        info = {"started": f"2026-11-0{day}T10:00:00+0000", "recipe": recipe}
        if accuracy:
            measured = {"split": "test", "accuracy": accuracy, "ece": 0.0123, "nll": 0.25}
            info["result"] = {**measured, "n": 10_000, "params": 269_722}
        write_files(runs / name, {"run.json": json.dumps(info).encode()})
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    claim = {"recipe": {"model": "speednet", "epochs": 10}, "accuracy": 0.92, "started": "2026-10"}
    (results / "claim.json").write_text(json.dumps(claim | {"sha256": entry_sum(claim)}))
    return ("--runs", str(runs), "--results", str(results))


def test_rows_are_filtered_sorted_and_written_as_metrics_are(leanres, places):
    done = leanres("runs", *places, "--where", "accuracy>0.9", "--sort", "-accuracy")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", "b", "claim", "a"]
    assert "93.00 %" in done.out
    assert "269,722" in done.out
    assert done.err.count("note: ") == 1
    shown = leanres("runs", *places, "--show", "name,ece,nll,lr", "--where", "name=a").out
    assert shown.splitlines()[1].split() == ["a", "1.23", "%", "0.2500", "0.1"]


def test_a_custom_network_has_a_short_name(leanres, places):
    recipe = {"model": {"family": "resnet", "widths": [8, 16], "depths": [1, 1]}, "epochs": 5}
    file = Path(places[1]) / "a" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"recipe": recipe}))
    shown = leanres("runs", *places, "--show", "name,model", "--where", "name=a").out
    assert shown.splitlines()[1].split() == ["a", "custom", "resnet"]


def test_rows_are_given_as_json_and_csv(leanres, places, tmp_path):
    rows = [json.loads(line) for line in leanres("runs", *places, "--json").out.splitlines()]
    assert [row["name"] for row in rows] == ["claim", "a", "b", "c"]
    done = leanres("runs", *places, "--csv", tmp_path / "x.csv")
    assert done.out == f"4 runs written to {tmp_path / 'x.csv'}\n"
    table = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [line["name"] for line in table] == ["claim", "a", "b", "c"]
    assert "no such runs in" in leanres("runs", *places, "--where", "epochs>99").out


def test_two_runs_are_compared_by_name(leanres, places):
    compared = leanres("runs", "diff", "a", "b", *places)
    assert "  epochs: 10 -> 20" in compared.out
    assert "  accuracy: 0.91 -> 0.93" in compared.out
    facts = json.loads(leanres("runs", "diff", "a", "claim", *places, "--json").out)
    assert facts["recipe"]["model"] == ["resnet20", "speednet"]
    assert "outcome: the same" in leanres("runs", "diff", "a", "a", *places).out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["diff", "a", "nothing"], "no run 'nothing'"),
        (["--show", "accurracy"], "did you mean 'accuracy'"),
        (["--where", "accuracy"], "give key=value"),
        (["--sort", "epoch"], "did you mean 'epochs'"),
        (["--csv", "/dev/null/x.csv"], "cannot write /dev/null/x.csv: Not a directory"),
    ],
)
def test_a_mistake_is_one_line(leanres, mistake, places, words, part):
    name, words = ("diff", words[1:]) if words[0] == "diff" else ("", words)
    mistake(leanres("runs", *filter(None, [name]), *words, *places), part)


def test_listing_imports_no_torch(places):
    code = (
        "import sys\nfrom leanres.cli import main\n"
        f"try:\n    main(['runs', *{places!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "claim" in done.stdout


def test_a_difference_has_six_digits_or_as_many_as_tell_it_apart(leanres, copied):
    first, second, third = copied("a"), copied("b"), copied("a", "c")
    change_result(first, nll=1 / 3)
    change_result(second, nll=2 / 3)
    change_result(third, nll=1 / 3 + 1e-9)
    assert "  nll: 0.333333 -> 0.666667" in leanres("runs", "diff", first, second).out
    assert f"  nll: {1 / 3!r} -> {1 / 3 + 1e-9!r}" in leanres("runs", "diff", first, third).out


def change_result(folder, **values) -> None:
    info = json.loads((folder / "run.json").read_text())
    info["result"] |= values
    (folder / "run.json").write_text(json.dumps(info))
