from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch

from leanres.errors import UserError
from leanres.report.record import read_record
from leanres.runs.layout import HISTORY, PREDICTIONS, TIMES


def test_a_run_is_read_as_it_was_written(three_runs):
    record = read_record(three_runs / "a")
    assert record.notes == ()
    assert record.name == "a"
    assert record.classes == tuple("0123456789")
    assert (record.split, record.epochs, len(record.rows)) == ("test", 3, 3)
    result = json.loads((three_runs / "a" / "run.json").read_text())["result"]
    assert float(record.predictions.correct.double().mean()) == result["accuracy"]
    epochs, losses = record.column("train_loss")
    assert epochs == [1, 2, 3]
    assert losses[0] > losses[-1]
    assert record.column("images_per_s")[1][0] > 0
    assert record.column("gradient_norm")[1][0] > 0
    assert record.column("nothing") == ([], [])
    assert record.command is None  # started from Python
    hardware = record.info["hardware"]
    assert (
        f", float32; kernels: {hardware['kernels']}; torch {torch.__version__}" in record.hardware
    )
    assert f"{hardware['threads']} thread" in record.hardware
    assert ("batch_size", "2000", "200") in record.recipe_changes
    assert "momentum" not in {key for key, _, _ in record.recipe_changes}


def test_damaged_lines_are_skipped_counted_and_noted(copied):
    folder = copied()
    good = (folder / HISTORY).read_bytes().splitlines()
    bad = [b"{", b"\xff\xfe", b"[1]", b'{"epoch": "one"}', b'{"epoch": NaN}', b""]
    (folder / HISTORY).write_bytes(b"\n".join([good[0], *bad, *good[1:]]))
    record = read_record(folder)
    assert len(record.rows) == 3
    assert record.notes == (
        f"{folder / HISTORY} is missing or was edited: it is not as leanres wrote it",
        f"5 lines of {folder / HISTORY} could not be read: left out",
    )


def test_times_are_optional_and_damaged_ones_are_left_out(copied):
    folder = copied()
    whole = (folder / TIMES).read_bytes().splitlines()
    (folder / TIMES).write_bytes(b"\n".join([b'{"epoch": 1}', *whole[1:], b"{"]))
    assert read_record(folder).column("seconds")[0] == [2, 3]
    (folder / TIMES).unlink()
    record = read_record(folder)
    assert (len(record.rows), record.column("seconds")) == (3, ([], []))
    assert record.notes == (
        f"{folder / TIMES} is missing or was edited: it is not as leanres wrote it",
    )


def test_an_unfinished_run_is_read_as_far_as_it_is_written(copied):
    folder = copied()
    info = json.loads((folder / "run.json").read_text())
    del info["result"]
    (folder / "run.json").write_text(json.dumps(info))
    (folder / HISTORY).write_bytes((folder / HISTORY).read_bytes()[:-20])  # cut in a line
    record = read_record(folder)
    assert record.result is None
    assert len(record.rows) == 2
    assert record.notes[-1] == f"{folder} has no result yet: 2 of 3 epochs are done"


@pytest.mark.parametrize("how", ["missing", "cut", "foreign", "short", "nan"])
def test_unusable_predictions_become_a_note(copied, how):
    folder = copied()
    path = folder / PREDICTIONS
    table = pq.read_table(path)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "foreign":
        pq.write_table(table.rename_columns([f"x{i}" for i in range(table.num_columns)]), path)
    elif how == "short":
        pq.write_table(table.slice(0, 100), path)
    else:
        probs = table["p_0"].to_numpy().copy()
        probs[3] = float("nan")
        place = table.column_names.index("p_0")
        pq.write_table(table.set_column(place, "p_0", [probs]), path)
    record = read_record(folder)
    assert record.predictions is None
    assert record.result is not None
    edited, note = record.notes
    assert edited == f"{path} is missing or was edited: it is not as leanres wrote it"
    assert PREDICTIONS in note


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, copied):
    with pytest.raises(UserError, match="is not a run folder"):
        read_record(tmp_path)
    folder = copied()
    info = json.loads((folder / "run.json").read_text())
    del info["preprocess"]["classes"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"lacks preprocess\.classes"):
        read_record(folder)


def test_probabilities_equal_those_of_the_file(three_runs):
    found = read_record(three_runs / "a").predictions
    table = pq.read_table(three_runs / "a" / PREDICTIONS)
    assert found.probs[:, 7].tolist() == table["p_7"].to_pylist()
    assert found.labels.tolist() == table["label"].to_pylist()
    assert torch.equal(found.predicted, torch.tensor(table["predicted"].to_pylist()))
