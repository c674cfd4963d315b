"""`leanres report`: its pages, notes and errors."""

from __future__ import annotations

import json

import pytest

from leanres.runs.layout import HISTORY, PREDICTIONS
from leanres.runs.weights import WEIGHTS


@pytest.fixture
def leanres(leanres):
    """The same fixture, without the note on enlarged digits."""

    def call(*words: object):
        outcome = leanres(*words)
        notes = [line for line in outcome.err.splitlines() if "8x8 digits enlarged" not in line]
        return outcome._replace(err="\n".join(notes))

    return call


def change_info(folder, **changes) -> None:
    """Update parts of run.json; None removes a part."""
    info = json.loads((folder / "run.json").read_text())
    for key, value in changes.items():
        if value is None:
            info.pop(key, None)
        else:
            info[key] = info.get(key, {}) | value
    (folder / "run.json").write_text(json.dumps(info))


def test_a_report_is_written_and_its_path_printed(leanres, copied, tmp_path):
    folder = copied()
    code, out, err = leanres("report", folder)
    assert (code, out, err) == (0, f"{folder / 'report.html'}\n", "")
    assert (folder / "report.html").stat().st_size > 50_000
    code, out, _ = leanres("report", folder, copied("b"), "--out", tmp_path / "two.html")
    assert (code, out) == (0, f"{tmp_path / 'two.html'}\n")
    assert "exact McNemar" in (tmp_path / "two.html").read_text()


def test_the_text_is_printed(leanres, copied):
    code, out, err = leanres("report", copied(), "--text", "--budget", "3k")
    assert (code, err) == (0, "")
    assert "test accuracy" in out
    assert "% of 3,000" in out
    assert len(out.splitlines()) < 15


def test_train_writes_the_report_and_prints_its_path(leanres, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["leanres", "train", "digits"])
    network = "model={family='speednet', widths=[8, 16]}"
    words = ["--data", "digits", "--epochs", 1, "--set", network, "--set", "batch_size=400"]
    code, out, _ = leanres("train", "digits", "--out", tmp_path / "run", *words)
    assert code == 0
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<pre>leanres train digits</pre>" in page
    code, out, err = leanres("train", "digits", "--out", tmp_path / "json", *words, "--json")
    assert json.loads(out)["split"] == "test"
    assert "report.html" in err


def assert_one_line(outcome: tuple[int, str, str], *parts: str) -> None:
    code, out, err = outcome
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("leanres: ")
    for part in parts:
        assert part in lines[0]


def test_missing_predictions_are_recomputed_or_the_error_says_what_is_missing(leanres, copied):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    code, out, err = leanres("report", folder, "--text")
    assert code == 0
    assert "hardest classes" in out
    assert "were recomputed from model.safetensors" in err
    (folder / WEIGHTS).unlink()
    assert_one_line(leanres("report", folder), PREDICTIONS, f"no {WEIGHTS}")


def test_missing_predictions_and_data_are_an_error(leanres, copied, monkeypatch):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    change_info(folder, origin={"data": "cifar10"})
    for name in ("LEANRES_DATA", "LEANRES_CACHE"):
        monkeypatch.setenv(name, str(folder / "none"))
    assert_one_line(leanres("report", folder), "its images were not found: give --data")


def test_a_report_without_the_data_says_what_is_missing(leanres, copied, monkeypatch):
    folder = copied()
    change_info(folder, origin={"data": "cifar10"})
    for name in ("LEANRES_DATA", "LEANRES_CACHE"):
        monkeypatch.setenv(name, str(folder / "none"))
    code, out, err = leanres("report", folder)
    assert (code, out) == (0, f"{folder / 'report.html'}\n")
    assert err.startswith("note: the run's data was not found (CIFAR-10 not found")
    assert "no pictures" in (folder / "report.html").read_text()


def test_an_unfinished_run_is_reported_as_far_as_it_is_written(leanres, copied):
    folder = copied()
    change_info(folder, result=None)
    code, out, err = leanres("report", folder)
    assert code == 0
    assert err.splitlines() == [
        f"note: {folder / 'run.json'} is missing or was edited: it is not as leanres wrote it",
        f"note: {folder} has no result yet: 3 of 3 epochs are done",
    ]
    assert "it is still training, or it was stopped" in (folder / "report.html").read_text()
    code, out, _ = leanres("report", folder, "--text")
    assert "no result yet: 3 of 3 epochs" in out


def test_a_damaged_line_of_metrics_is_skipped_and_counted(leanres, copied):
    folder = copied()
    with (folder / HISTORY).open("a") as file:
        file.write('{"epoch": 4, "tra\n')
    code, _, err = leanres("report", folder)
    assert code == 0
    assert err.splitlines() == [
        f"note: {folder / HISTORY} is missing or was edited: it is not as leanres wrote it",
        f"note: 1 line of {folder / HISTORY} could not be read: left out",
    ]
    assert "1 line of" in (folder / "report.html").read_text()


def test_runs_on_different_data_are_refused(leanres, copied):
    one, two = copied("a"), copied("b")
    prints = json.loads((two / "run.json").read_text())["data"]["fingerprints"]
    change_info(two, data={"fingerprints": prints | {"test": "0123456789abcdef" * 4}})
    assert_one_line(
        leanres("report", one, two), "different data", prints["test"][:16], "0123456789abcdef"
    )


def test_the_error_for_an_unknown_layer_lists_the_layers(leanres, copied):
    assert_one_line(
        leanres("report", copied(), "--layer", "stages.5"),
        "no layer with maps 'stages.5'",
        "stages.1.conv2",
        "stem",
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["--budget", "few", "x"], "'few' is not a count"),
    ],
)
def test_other_mistakes_are_one_line_as_well(leanres, words, part):
    assert_one_line(leanres("report", *words), part)
