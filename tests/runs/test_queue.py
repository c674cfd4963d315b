"""Runs that begin from a run.json written beforehand, pause at an epoch, and are resumed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from leanres.data.sources import locate
from leanres.errors import UserError
from leanres.runs import fit
from leanres.runs import run as runs
from leanres.runs.run_json import INFO, read_info
from leanres.training.device import CPU


@pytest.fixture
def weights():
    """The tensors of a run's last checkpoint as bytes."""

    def read(folder) -> bytes:
        return (runs.checkpoint.saved(folder / "checkpoint")[0] / "state.safetensors").read_bytes()

    return read


def test_a_queued_run_begins_when_it_is_resumed_and_equals_one_made_at_once(
    tmp_path, digits, device, small, weights
):
    recipe = replace(small, precision="float32", compiled=False)
    runs.enqueue(tmp_path / "queued", recipe, locate("digits") | {"tta": "none"})
    with pytest.raises(UserError, match="has not started yet: `leanres resume"):
        read_info(tmp_path / "queued")
    with pytest.raises(UserError, match="exists already"):
        runs.create(tmp_path / "queued", recipe, digits, device)
    result = fit.resume(tmp_path / "queued")
    assert (result["split"], result["tta"]) == ("test", "none")
    whole = fit.fit(tmp_path / "whole", recipe, digits, device)
    assert result["accuracy"] == whole["accuracy"]
    assert weights(tmp_path / "queued") == weights(tmp_path / "whole")


def test_a_run_pauses_at_an_epoch_and_its_rest_equals_the_uninterrupted_run(
    tmp_path, digits, device, small, weights
):
    recipe = replace(small, epochs=3)
    run = runs.create(tmp_path / "run", recipe, digits, device)
    rows = []
    assert fit.complete(run, on_epoch=rows.append, until_epoch=1) == {}
    assert [row["epoch"] for row in rows] == [1]
    assert "result" not in read_info(tmp_path / "run")
    again = runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device)
    assert fit.complete(again, on_epoch=rows.append, until_epoch=1) == {}  # it is there already
    again = runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device)
    result = fit.complete(again, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result["n"] == 360
    fit.fit(tmp_path / "whole", recipe, digits, device)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_val_is_measured_after_each_epoch_unless_the_run_says_not_to(
    tmp_path, digits, device, small
):
    origin = {"validate": False, "measure": "val"}
    run = runs.create(tmp_path / "run", small, digits, device, origin)
    result = fit.complete(run)
    assert (result["split"], result["n"]) == ("val", 200)
    assert all("val_accuracy" not in row for row in run.state.history)


def test_an_unchanged_machine_resumes_without_a_note(tmp_path, digits, device, small):
    runs.create(tmp_path / "run", small, digits, device).release()
    assert runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device).notes == []


@pytest.mark.parametrize(
    ("key", "before"),
    [("kernels", "own, AMX"), ("torch", "2.11.0"), ("precision", "bfloat16"), ("threads", 64)],
)
def test_what_makes_a_resumed_run_inexact_is_said(tmp_path, digits, device, small, key, before):
    runs.create(tmp_path / "run", small, digits, device).release()
    info = json.loads((tmp_path / "run" / INFO).read_text())
    now = info["hardware"][key]
    info["hardware"][key] = before
    (tmp_path / "run" / INFO).write_text(json.dumps(info))
    edited, note = runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device).notes
    assert (
        edited
        == f"{tmp_path / 'run' / INFO} is missing or was edited: it is not as leanres wrote it"
    )
    assert "not be bit-identical" in note
    assert note.endswith(f": {key} changed from {before} to {now}")


def test_run_json_says_which_kernels_compute(tmp_path, digits, device, small):
    runs.create(tmp_path / "run", small, digits, device)
    assert read_info(tmp_path / "run")["hardware"]["kernels"] == device.kernels != ""


def test_a_resumed_run_keeps_its_precision_unless_it_moves_to_another_kind_of_device(monkeypatch):
    known = {"device": "cpu", "precision": "bfloat16", "compiled": True}
    recipe = {"precision": "float32", "compiled": False}
    info = {"hardware": known, "recipe": recipe, "origin": {}}
    assert runs.device_of(info) == CPU("cpu", "bfloat16", compiled=True)
    assert runs.device_of(info, "cpu") == CPU("cpu", "bfloat16", compiled=True)
    moved = info | {"hardware": known | {"device": "cuda:0"}}
    assert runs.device_of(moved, "cpu") == CPU("cpu", "float32", compiled=False)
    queued = {"recipe": recipe, "origin": {"device": "cpu"}}
    assert runs.device_of(queued) == CPU("cpu", "float32", compiled=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda:0' is not usable here"):
        runs.device_of(moved)
