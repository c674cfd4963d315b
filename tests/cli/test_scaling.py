"""`leanres bench scaling`."""

from __future__ import annotations

import json

import pytest


@pytest.mark.usefixtures("wide")
def test_every_curve_is_printed_with_its_line_written_and_drawn(leanres, tmp_path):
    words = ["bench", "scaling", "--data", "digits", "--steps", 1, "--params", "0.02,0.04"]
    words += ["--batches", "20,100", "--shares", "0.1,0.2", "--set", "batch_size=50"]
    words += ["--set", "precision=float32"]
    words += ["--set", 'model={family="speednet", widths=[8, 16, 16]}']
    out, plot = tmp_path / "deep" / "curves.json", tmp_path / "curves.png"
    done = leanres(*words, "--out", out, "--plot", plot)
    assert done.code == 0, done.err
    report = json.loads(out.read_text())
    assert {"hardware", "commit", "recipe"} < set(report)
    tables = done.out.strip().split("\n\n")
    assert len(tables) == len(report["curves"]) == 3
    for table, curve in zip(tables, report["curves"], strict=True):
        head, *rows, line = table.splitlines()
        assert head.split("  ")[0] == curve["grows"]
        assert f"seconds {curve['takes']}" in head
        assert [float(row.split()[0].replace(",", "")) for row in rows] == pytest.approx(
            curve["x"], rel=1e-3
        )
        assert line.startswith(f"line: {curve['fixed_seconds']:.3g} seconds {curve['takes']}, plus")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batches", "32"), "--batches '32': give two or more"),
        (("--shares", "0,1"), "--shares '0,1'"),
        (("--batches", "1e400,2"), "two or more whole numbers"),
        (("--batches", "nan,2"), "two or more whole numbers"),
        (("--batches", "2.5,4"), "two or more whole numbers"),
        (("--params", "few,many"), "--params 'few,many'"),
        (("--params", "1,1.0001"), "two of these are one network"),
        (("--params", "0.001,1"), "a budget of 1,000"),
        (("--plot", "curves.doc"), "--plot curves.doc: give a file that ends in .png"),
        (("--batches", "32,99999"), "99,999 is more than"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(leanres, mistake, words, said):
    done = leanres("bench", "scaling", "--data", "digits", *words)
    mistake(done, said)
    assert done.out == ""
