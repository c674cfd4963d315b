"""The live line and the rows of a training."""

from __future__ import annotations

import io
import re

import pytest
import rich.console

from leanres.cli import progress


def test_a_terminal_shows_one_live_line(leanres, tmp_path, tiny, monkeypatch):
    out = io.StringIO()
    shown = rich.console.Console(file=out, force_terminal=True, width=80, highlight=False)
    monkeypatch.setattr("leanres.cli.progress.console", lambda stderr: shown)
    monkeypatch.setattr("leanres.cli.progress.REFRESH_S", 0.0)
    words = ["train", "digits", "--data", "digits", "--out", tmp_path / "run", "--epochs", 1]
    assert leanres(*words, *tiny).code == 0
    text = out.getvalue()
    assert "\x1b[?25l" in text  # the cursor is hidden: the line is drawn over itself
    assert re.search(r"epoch 1/1.*loss \d\.\d+.*acc \d+ %.*lr 0\.\d+.*images/s", text)
    assert re.search(r"epoch +1/1 +\d+\.\d\d", text)


def test_epochs_are_rows_of_one_table(leanres, tmp_path, tiny):
    words = ["train", "digits", "--data", "digits", "--out", tmp_path / "run", "--epochs", 2]
    lines = leanres(*words, *tiny).out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["train"])
    assert lines[at].split() == ["train", "%", "loss", "val", "%", "loss", "lr", "images/s", "s"]
    rows = lines[at + 1 : at + 3]
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    for row, values in zip(rows, metrics[1:], strict=True):
        named = dict(zip(metrics[0].split(","), map(float, values.split(",")), strict=True))
        assert len(row) == len(lines[at]) <= 80
        assert row.split() == [
            *("epoch", f"{named['epoch']:.0f}/2"),
            *(f"{100 * named['train_accuracy']:.2f}", f"{named['train_loss']:.4f}"),
            *(f"{100 * named['val_accuracy']:.2f}", f"{named['val_loss']:.4f}"),
            *(f"{named['lr']:.3g}", f"{named['images_per_s']:,.0f}", f"{named['seconds']:.1f}"),
        ]


@pytest.mark.parametrize("split", ["test", None])
def test_the_result_names_what_was_measured(capsys, split):
    class Run:
        folder = "runs/x"

        class setup:
            recipe = type("Recipe", (), {"epochs": 4})
            device = type("Device", (), {"precision": "float32"})

    measured = {"n": 8, "accuracy": 0.5, "accuracy_tta": 0.625, "tta": "flip", "nll": 1, "ece": 0.1}
    progress._print_result(Run, {"split": split, **measured, "train_seconds": 12.3})
    out = capsys.readouterr().out
    assert (
        "test accuracy 50.00 % of 8 images (95 % interval 21.52 to 78.48 %), 62.50 % with flip"
        in out
    ) == bool(split)
    assert "leanres resume runs/x --epochs 8" in out
