"""`leanres report` as a user meets it."""

from __future__ import annotations

import json

import pytest

from leanres.runs.layout import METRICS, PREDICTIONS
from leanres.runs.weights import WEIGHTS


@pytest.fixture
def leanres(leanres):
    """The same, without the note on enlarged digits."""

    def call(*words: object):
        outcome = leanres(*words)
        notes = [line for line in outcome.err.splitlines() if "8x8 digits enlarged" not in line]
        return outcome._replace(err="\n".join(notes))

    return call


def spoil(folder, **changes) -> None:
    info = json.loads((folder / "run.json").read_text())
    for key, value in changes.items():
        if value is None:
            info.pop(key, None)
        else:
            info[key] = info.get(key, {}) | value
    (folder / "run.json").write_text(json.dumps(info))


def test_a_report_is_written_and_named(leanres, copied, tmp_path):
    folder = copied()
    code, out, err = leanres("report", folder)
    assert (code, out, err) == (0, f"{folder / 'report.html'}\n", "")
    assert (folder / "report.html").stat().st_size > 50_000
    code, out, _ = leanres("report", folder, copied("b"), "--out", tmp_path / "two.html")
    assert (code, out) == (0, f"{tmp_path / 'two.html'}\n")
    assert "exact McNemar" in (tmp_path / "two.html").read_text()


def test_the_text_goes_to_the_console(leanres, copied):
    code, out, err = leanres("report", copied(), "--text", "--budget", "3k")
    assert (code, err) == (0, "")
    assert "test accuracy" in out
    assert "% of 3,000" in out
    assert len(out.splitlines()) < 15


def test_train_writes_the_report_and_says_where(leanres, tmp_path, monkeypatch):
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


def one_line(outcome: tuple[int, str, str], *parts: str) -> None:
    code, out, err = outcome
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("leanres: ")
    for part in parts:
        assert part in lines[0]


def test_a_run_without_predictions_is_computed_anew_or_says_what_is_missing(leanres, copied):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    code, out, err = leanres("report", folder, "--text")
    assert code == 0
    assert "hardest classes" in out
    assert "were computed anew from model.safetensors" in err
    (folder / WEIGHTS).unlink()
    one_line(leanres("report", folder), PREDICTIONS, f"no {WEIGHTS}")


def test_a_run_without_predictions_and_without_its_data_says_so(leanres, copied, monkeypatch):
    folder = copied()
    (folder / PREDICTIONS).unlink()
    spoil(folder, origin={"data": "cifar10"})
    for name in ("LEANRES_DATA", "LEANRES_CACHE"):
        monkeypatch.setenv(name, str(folder / "none"))
    one_line(leanres("report", folder), "its images are not here: give them with --data")


def test_a_report_without_the_data_says_what_it_lacks(leanres, copied, monkeypatch):
    folder = copied()
    spoil(folder, origin={"data": "cifar10"})
    for name in ("LEANRES_DATA", "LEANRES_CACHE"):
        monkeypatch.setenv(name, str(folder / "none"))
    code, out, err = leanres("report", folder)
    assert (code, out) == (0, f"{folder / 'report.html'}\n")
    assert err.startswith("note: the run's data is not at hand (CIFAR-10 not found")
    assert "no pictures" in (folder / "report.html").read_text()


def test_a_run_that_is_being_written_shows_what_there_is(leanres, copied):
    folder = copied()
    spoil(folder, result=None)
    code, out, err = leanres("report", folder)
    assert (code, err) == (0, f"note: {folder} has no result yet: 3 of 3 epochs are there")
    assert "it is being written, or it was stopped" in (folder / "report.html").read_text()
    code, out, _ = leanres("report", folder, "--text")
    assert "no result yet: 3 of 3 epochs" in out


def test_a_corrupt_metrics_line_is_skipped_counted_and_said(leanres, copied):
    folder = copied()
    with (folder / METRICS).open("a") as file:
        file.write('{"epoch": 4, "tra\n')
    code, _, err = leanres("report", folder)
    assert (code, err) == (0, f"note: 1 line of {folder / METRICS} could not be read: left out")
    assert "1 line of" in (folder / "report.html").read_text()


def test_runs_on_different_data_are_refused(leanres, copied):
    one, two = copied("a"), copied("b")
    prints = json.loads((two / "run.json").read_text())["data"]["fingerprints"]
    spoil(two, data={"fingerprints": prints | {"test": "0123456789abcdef" * 4}})
    one_line(leanres("report", one, two), "different data", prints["test"][:16], "0123456789abcdef")


def test_an_unknown_layer_gets_the_list(leanres, copied):
    one_line(
        leanres("report", copied(), "--layer", "stages.5"),
        "no layer with maps 'stages.5'",
        "stages.1.conv2",
        "stem",
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [(["nowhere"], "nowhere is no run folder"), (["--budget", "few", "x"], "'few' is no count")],
)
def test_other_mistakes_are_one_line_too(leanres, words, part):
    one_line(leanres("report", *words), part)
