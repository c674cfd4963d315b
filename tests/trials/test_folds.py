"""Cross-validation: out-of-fold figures against scikit-learn, kills, processes, label errors."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from leanres.data.folds import fold_numbers, in_fold, training_images
from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics.mistakes import label_suspects
from leanres.models.speednet import SpeedNetConfig
from leanres.report.record import read_record
from leanres.runs.fit import resume
from leanres.runs.layout import PREDICTIONS, read_history
from leanres.runs.ledger import read_ledger, read_row
from leanres.runs.predictor import load_predictor
from leanres.runs.run_json import read_info
from leanres.training.device import CPU
from leanres.training.recipe import Recipe
from leanres.trials.executors import InProcess, LocalProcesses
from leanres.trials.folds import LABEL_ERRORS, OUT_OF_FOLD, SUMMARY, cross_validate
from leanres.trials.jobs import Event

CPU32 = CPU("cpu", "float32", compiled=False)
RECIPE = Recipe(
    model=SpeedNetConfig((8, 16)),
    epochs=4,
    batch_size=50,
    accumulate=1,
    augment=(),
    val=100,  # not needed, so it is trained on
    precision="float32",
)
FLIPPED = range(0, 200, 10)


@pytest.fixture(scope="module")
def data(digits: Dataset) -> Dataset:
    """500 digits in memory, 100 of them val; each tenth of the first 200 has a wrong label."""
    labels = digits.train.labels.clone()
    labels[FLIPPED] = (labels[FLIPPED] + 5) % 10
    wrong = Split(digits.train.images, labels, digits.train.classes)
    files = tuple(f"={i}.png" for i in range(400))
    train = replace(wrong.subset(range(400)), files=files)
    return replace(digits, name="arrays", train=train, val=wrong.subset(range(400, 500)))


def run(folder: Path, data: Dataset, recipe: Recipe = RECIPE, folds: int = 3, **more):
    return cross_validate(folder, recipe, data, folds, executor=InProcess(data, CPU32), **more)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> tuple[Path, dict, list[Event]]:
    folder, events = tmp_path_factory.mktemp("folds") / "out", []
    return folder, run(folder, data, watch=events.append), events


def columns(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / OUT_OF_FOLD)
    return {name: table[name].to_numpy() for name in table.column_names}


def test_each_image_is_predicted_by_the_network_that_has_not_seen_it(done, data):
    folder, _, _ = done
    images, found = training_images(data), columns(folder)
    assert tuple(found["file"]) == images.files
    assert found["label"].tolist() == images.labels.tolist()
    assert found["fold"].tolist() == fold_numbers(images, 3).tolist()
    probs = np.stack([found[f"p_{name}"] for name in images.classes], 1)
    for fold in (1, 2, 3):
        members = np.flatnonzero(found["fold"] == fold)
        logits = load_predictor(folder / f"fold-{fold}", "cpu").logits(images.images[members])
        assert probs[members] == pytest.approx(logits.softmax(1).numpy(), abs=1e-5)
        info = read_info(folder / f"fold-{fold}")
        assert info["data"]["train"] == 500 - len(members)  # nothing is held out for val
        assert info["data"]["fingerprints"]["train"] == in_fold(data, fold, 3).train.fingerprint
    assert (found["predicted"] == probs.argmax(1)).all()


def test_the_summary_is_what_scikit_learn_and_numpy_compute(done):
    folder, summary, _ = done
    found, pooled = columns(folder), summary["pooled"]
    assert pooled["accuracy"] == accuracy_score(found["label"], found["predicted"])
    macro = f1_score(found["label"], found["predicted"], average="macro")
    assert pooled["macro_f1"] == pytest.approx(macro)
    assert pooled["n"] == summary["images"] == 500
    assert pooled["interval"][0] < pooled["accuracy"] < pooled["interval"][1]
    for row in summary["folds"]:
        own = found["fold"] == row["fold"]
        assert row["n"] == own.sum()
        score = accuracy_score(found["label"][own], found["predicted"][own])
        assert row["accuracy"] == pytest.approx(score)
    for key in ("accuracy", "nll", "macro_f1"):
        values = [row[key] for row in summary["folds"]]
        assert summary["spread"][key]["mean"] == pytest.approx(np.mean(values))
        assert summary["spread"][key]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert json.loads((folder / SUMMARY).read_text()) == summary


def test_a_cross_validation_is_one_row_of_the_ledger(done):
    folder, summary, _ = done
    (row,), notes = read_ledger(folder.parent, folder / "none")
    assert notes == []
    assert (row["name"], row["status"], row["split"]) == ("out", "measured", "folds")
    assert (row["accuracy"], row["n"]) == (summary["pooled"]["accuracy"], 500)
    assert row["params"] == read_info(folder / "fold-1")["result"]["params"]
    seconds = [read_info(folder / f"fold-{k}")["result"]["train_seconds"] for k in (1, 2, 3)]
    assert row["train_seconds"] == pytest.approx(sum(seconds))
    assert row["started"] == read_info(folder / "fold-1")["started"]
    assert read_row(folder) == row


def test_an_unfinished_cross_validation_is_a_row_without_figures(done, tmp_path):
    folder, _, _ = done
    (tmp_path / "cv" / "fold-2").mkdir(parents=True)
    shutil.copy(folder / "fold-2" / "run.json", tmp_path / "cv" / "fold-2")
    (row,), notes = read_ledger(tmp_path, tmp_path / "none")
    assert notes == []
    assert (row["name"], row["status"], row["accuracy"]) == ("cv", "unfinished", None)
    assert (row["epochs"], row["params"], row["split"]) == (RECIPE.epochs, None, None)
    assert read_row(tmp_path / "cv") == row
    assert read_row(tmp_path / "cv" / "fold-2")["status"] == "measured"  # a run by itself


def test_wrong_labels_lead_the_list_and_names_are_no_formulas(done, data):
    folder, summary, _ = done
    images, found = training_images(data), columns(folder)
    probs = torch.from_numpy(np.stack([found[f"p_{name}"] for name in images.classes], 1))
    suspects = label_suspects(probs, images.labels, 500).tolist()
    with (folder / LABEL_ERRORS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    escaped = [f"'{name}" if name.startswith("=") else name for name in images.files]
    assert [row["file"] for row in rows] == [escaped[i] for i in suspects]
    assert [row["label"] for row in rows] == [str(int(images.labels[i])) for i in suspects]
    shares = [float(row["p_label"]) for row in rows]
    assert shares == sorted(shares)
    assert summary["label_errors"]["count"] == len(rows)
    assert [row["file"] for row in summary["label_errors"]["first"]] == [
        images.files[i] for i in suspects[:10]
    ]
    first = set(suspects[: len(FLIPPED)])
    assert len(first & set(FLIPPED)) >= len(FLIPPED) / 2  # of 20 wrong labels among 500 images


def test_a_stopped_one_continues_and_ends_with_the_same_files(done, data, tmp_path):
    folder, whole, _ = done

    def stop(event: Event) -> None:
        if event.kind == "started" and event.job.folder.name == "fold-2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", data, watch=stop)
    assert not (tmp_path / "out" / SUMMARY).exists()
    events: list[Event] = []
    run(tmp_path / "out", data, watch=events.append)
    kinds = [(event.kind, event.job.folder.name) for event in events]
    assert kinds[0] == ("finished", "fold-1")
    assert ("started", "fold-1") not in kinds
    for name in (OUT_OF_FOLD, LABEL_ERRORS):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    again = run(tmp_path / "out", data)
    assert again["pooled"] == whole["pooled"]


@pytest.mark.usefixtures("_one_thread")
def test_processes_train_the_same_folds(data, tmp_path, forked_workers):
    run(tmp_path / "here", data, replace(RECIPE, epochs=1), folds=2)
    executor = LocalProcesses(2, ["cpu"], threads=1)
    cross_validate(tmp_path / "there", replace(RECIPE, epochs=1), data, 2, executor=executor)
    here, there = (tmp_path / place / OUT_OF_FOLD for place in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


def test_a_fold_is_a_run_that_can_be_extended_and_says_what_it_is(done, data):
    folder, _, _ = done
    before = read_info(folder / "fold-3")
    assert "fold 3 of 3 of a cross-validation" in read_record(folder / "fold-3").notes[0]
    result = resume(folder / "fold-3", epochs=5, device=CPU32)  # its arrays are kept in the cache
    assert result["n"] == before["result"]["n"]
    assert len(read_history(folder / "fold-3")[0]) == 5
    with pytest.raises(UserError, match="fold-3 holds a run of another recipe"):
        run(folder, data)


def test_another_number_of_folds_or_other_data_is_refused_before_any_training(data, tmp_path):
    quick = replace(RECIPE, epochs=1)
    run(tmp_path, data, quick, folds=2)
    with pytest.raises(UserError, match="fold-1 holds fold 1 of 2: name another folder"):
        run(tmp_path, data, quick)
    fewer = replace(data, val=None)
    with pytest.raises(UserError, match="was trained on other data"):
        run(tmp_path, fewer, quick, folds=2)
    turned = replace(data, train=data.train.subset(range(399, -1, -1)))
    with pytest.raises(UserError, match="had the images in another order"):
        run(tmp_path, turned, quick, folds=2)
    (tmp_path / "fold-2" / PREDICTIONS).write_bytes(b"x")
    with pytest.raises(UserError, match=r"predictions.parquet cannot be read .*: delete "):
        run(tmp_path, data, quick, folds=2)


def test_an_epoch_is_chosen_on_val_images_of_the_folds_training_part(data, tmp_path):
    with pytest.raises(UserError, match="keep_best chooses an epoch on val"):
        run(tmp_path, data, replace(RECIPE, keep_best=True, val=0))
    recipe = replace(RECIPE, keep_best=True, epochs=2)
    (row, _) = run(tmp_path, data, recipe, folds=2)["folds"]
    assert (row["chosen_by"], row["last_epoch"]) == ("val", 2)
    info = read_info(tmp_path / "fold-1")
    assert info["data"]["val"] == 100
    assert info["data"]["train"] == 500 - 100 - row["n"]


def test_a_fold_that_fails_is_named(data, tmp_path):
    with pytest.raises(UserError, match=r"2 of 2 folds are without .*fold-1 failed: .*'owl'"):
        run(tmp_path, data, replace(RECIPE, class_weights={"owl": 2.0}), folds=2)
    assert not (tmp_path / SUMMARY).exists()


def test_a_set_for_testing_alone_has_no_folds(data, tmp_path):
    with pytest.raises(UserError, match="has test images alone"):
        run(tmp_path, replace(data, train=data.train.subset([]), val=None))
