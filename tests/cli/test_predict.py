"""`leanres predict`."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path


def test_predict_gives_a_table_json_and_csv_and_names_what_is_broken(
    leanres, run_folder, pictures, tmp_path, digits
):
    shown = leanres("predict", run_folder, pictures)
    assert shown.code == 0
    assert "broken.png" in shown.err
    assert str(pictures / "img11.png") in shown.out
    assert shown.out.splitlines()[0].split() == ["image", "class", "prob", "then"]
    rows = [
        json.loads(x) for x in leanres("predict", run_folder, pictures, "--json").out.splitlines()
    ]
    assert [Path(r["path"]).name for r in rows] == [f"img{i}.png" for i in range(12)]
    assert all(r["top"][0]["prob"] >= r["top"][1]["prob"] for r in rows)
    done = leanres("predict", run_folder, pictures, "--csv", tmp_path / "out.csv")
    assert "12 predictions" in done.out
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(t["ID"], t["Labels"]) for t in table] == [
        (f"img{i}", r["top"][0]["class"]) for i, r in enumerate(rows)
    ]
    labels = digits.test.labels[:12].tolist()
    right = sum(int(t["Labels"]) == label for t, label in zip(table, labels, strict=True))
    assert right >= 6  # six epochs of a tiny network: far above the one in ten of chance


def test_a_name_that_is_not_utf8_is_shown_and_written(leanres, run_folder, pictures, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(pictures / "img3.png", odd)
    assert "caf?.png" in leanres("predict", run_folder, odd).out
    assert leanres("predict", run_folder, odd, "--csv", tmp_path / "odd.csv").code == 0
    assert b"caf\xe9," in (tmp_path / "odd.csv").read_bytes()


def test_predicting_nothing_or_nonsense_is_one_line(
    leanres, mistake, run_folder, pictures, tmp_path
):
    mistake(leanres("predict", run_folder, tmp_path), "no images")
    mistake(leanres("predict", run_folder, tmp_path / "gone.png"), "gone.png does not exist")
    mistake(leanres("predict", run_folder, pictures / "broken.png"), "broken.png cannot be read")
    mistake(leanres("predict", run_folder, pictures, "--strict"), "broken.png cannot be read")
    out = tmp_path / "no" / "out.csv"
    mistake(leanres("predict", run_folder, pictures, "--csv", out), f"cannot write {out}")
