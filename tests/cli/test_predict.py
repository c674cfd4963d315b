"""`leanres predict`."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from leanres.runs.predictor import load_predictor


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_predict_gives_a_table_json_and_csv_and_names_what_is_broken(
    leanres, run_folder, pictures, tmp_path, digits
):
    shown = leanres("predict", run_folder, pictures)
    assert shown.code == 0
    assert "broken.png" in shown.err
    assert shown.out.splitlines()[0].split() == ["image", "class", "prob", "then"]
    assert shown.out.splitlines()[12].startswith("img11.png ")
    lines = leanres("predict", run_folder, pictures, "--json").out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["id"] for r in rows] == [f"img{i}.png" for i in range(12)]
    assert rows[3]["path"] == str(pictures / "img3.png")
    assert all(r["top"][0]["prob"] >= r["top"][1]["prob"] for r in rows)
    done = leanres("predict", run_folder, pictures, "--csv", tmp_path / "out.csv", "--top", 2)
    assert "12 predictions" in done.out
    table = read_csv(tmp_path / "out.csv")
    assert list(table[0]) == ["ID", "Labels", "Probability", "Labels_2", "Probability_2"]
    for found, row in zip(table, rows, strict=True):
        first, second = row["top"][:2]
        assert found["ID"] == row["id"]
        assert (found["Labels"], found["Labels_2"]) == (first["class"], second["class"])
        assert abs(float(found["Probability"]) - first["prob"]) < 1e-5
    labels = digits.test.labels[:12].tolist()
    right = sum(int(t["Labels"]) == label for t, label in zip(table, labels, strict=True))
    assert right >= 6  # six epochs of a tiny network: far above the one in ten of chance


def test_ids_are_paths_or_stems_where_these_differ(
    leanres, mistake, run_folder, pictures, tmp_path
):
    for name in ("a/0.png", "b/1.png", "b/=cmd.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "img3.png", tmp_path / "in" / name)
    out, words = tmp_path / "out.csv", ("predict", run_folder, tmp_path / "in", "--csv")
    assert leanres(*words, out).code == 0
    assert [row["ID"] for row in read_csv(out)] == ["a/0.png", "b/1.png", "b/=cmd.png"]
    assert list(read_csv(out)[0]) == ["ID", "Labels", "Probability"]
    assert leanres(*words, out, "--id", "stem").code == 0
    assert [row["ID"] for row in read_csv(out)] == ["0", "1", "'=cmd"]  # no formula
    (tmp_path / "in" / "b" / "1.png").rename(tmp_path / "in" / "b" / "0.png")
    out.unlink()
    mistake(leanres(*words, out, "--id", "stem"), "a/0.png and b/0.png have the same stem")
    assert not list(tmp_path.glob("*.csv"))


def test_an_unlabelled_batch_gives_a_submission(leanres, mistake, run_folder, digits, tmp_path):
    images, out = digits.test.images[:9], tmp_path / "out.csv"
    batch = {b"data": images.reshape(9, -1).numpy(), b"ids": list(range(100, 109))}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    np.save(tmp_path / "test.npy", images.permute(0, 2, 3, 1).numpy())
    for name, first in (("test_batch", 100), ("test.npy", 0)):
        assert "9 predictions" in leanres("predict", run_folder, tmp_path / name, "--csv", out).out
        rows = read_csv(out)
        assert [row["ID"] for row in rows] == [str(first + i) for i in range(9)]
        best = load_predictor(run_folder, "cpu").logits(images).argmax(1)
        assert [row["Labels"] for row in rows] == [digits.test.classes[i] for i in best]
    np.save(tmp_path / "test.npy", np.arange(9))
    mistake(leanres("predict", run_folder, tmp_path / "test.npy"), "its array has shape (9,)")


def test_a_terminal_sees_how_far_it_is(leanres, run_folder, pictures, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def bar(shown):
        yield lambda *progress: seen.append((shown, *progress))

    monkeypatch.setattr("leanres.cli.options.progress_bar", bar)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(
        "leanres.cli.predict.sys", SimpleNamespace(stderr=terminal, stdout=terminal)
    )
    assert leanres("predict", run_folder, pictures, "--csv", tmp_path / "out.csv").code == 0
    assert seen == [(True, "classifying images", done, 13) for done in range(1, 14)]


def test_a_file_of_predictions_is_whole_or_not_there(
    leanres, mistake, run_folder, pictures, tmp_path
):
    out = tmp_path / "out.csv"
    out.write_text("before")
    mistake(leanres("predict", run_folder, pictures, "--strict", "--csv", out), "broken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert out.read_text() == "before"


def test_a_name_that_is_not_utf8_is_shown_and_written(leanres, run_folder, pictures, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(pictures / "img3.png", odd)
    assert "caf?.png" in leanres("predict", run_folder, odd).out
    assert leanres("predict", run_folder, odd, "--csv", tmp_path / "odd.csv").code == 0
    assert b"caf\xe9.png," in (tmp_path / "odd.csv").read_bytes()


def test_predicting_nothing_or_nonsense_is_one_line(
    leanres, mistake, run_folder, pictures, tmp_path
):
    mistake(leanres("predict", run_folder, tmp_path), "no images in")
    mistake(leanres("predict", run_folder, tmp_path / "gone.png"), "gone.png does not exist")
    mistake(leanres("predict", run_folder, pictures / "broken.png"), "broken.png cannot be read")
    mistake(leanres("predict", run_folder, pictures, "--strict"), "broken.png cannot be read")
    mistake(leanres("predict", run_folder, ""), "IMAGES is empty: give a path")
    mistake(leanres("predict", run_folder, pictures, "--csv="), "--csv is empty: give a path")
    mistake(leanres("predict", run_folder, pictures, "--csv", "."), "cannot write .: it is a folde")
    out = tmp_path / "no" / "out.csv"
    mistake(leanres("predict", run_folder, pictures, "--csv", out), f"cannot write {out}")


def test_grey_values_that_are_clipped_are_counted_in_one_note(leanres, run_folder, tmp_path):
    for i, value in enumerate((9, 70_000, -3, 100_000)):
        Image.fromarray(np.full((8, 8), value, np.int32)).save(tmp_path / f"{i}.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "usual.tif")
    found = leanres("predict", run_folder, tmp_path, "--json")
    assert found.code == 0
    notes = [line for line in found.err.splitlines() if "grey image" in line]
    assert notes == [
        "note: 2 16-bit grey images have values from -3 to 9: 0 is read as black, 255 as white, and"
        " what is outside is clipped, in 1 of them",
        "note: 2 32-bit grey images have values from 70000 to 100000: 0 is read as black, 65535 as"
        " white, and what is outside is clipped, in 2 of them",
    ]


def test_a_name_with_control_characters_is_one_line_everywhere(
    leanres, run_folder, pictures, tmp_path
):
    odd = tmp_path / "two\nlines\x1b[2J.png"
    shutil.copy(pictures / "img3.png", odd)
    plain = str(tmp_path / "two?lines?[2J.png")
    assert leanres("predict", run_folder, odd, "--csv", tmp_path / "odd.csv").code == 0
    _, row = (tmp_path / "odd.csv").read_text().splitlines()
    assert row.startswith(f"{plain},")
    found = json.loads(leanres("predict", run_folder, odd, "--json").out)
    assert (found["id"], found["path"]) == (plain, plain)


def test_a_wrong_choice_is_one_line_and_the_help_shows_the_choices(leanres, mistake, run_folder):
    wrong = leanres("predict", run_folder, "x.png", "--id", "foo")
    mistake(wrong, "leanres: --id foo: give path or stem")
    assert "--id path|stem " in leanres("predict", "--help").out
