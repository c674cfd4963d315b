"""`leanres export`; what the files answer is tested in tests/ship."""

from __future__ import annotations

import json

import pytest


def test_a_card_gives_the_figures_of_the_file(run_folder, tmp_path, leanres):
    out = tmp_path / "digits.safetensors"
    done = leanres("export", run_folder, out, "--card")
    assert done.code == 0
    assert "keep their class" in done.out
    assert f"model card: {tmp_path / 'digits.md'}" in done.out
    card = out.with_suffix(".md").read_text()
    found = json.loads(leanres("evaluate", out, "--data", "digits", "--json").out)
    assert f"| test accuracy | {100 * found['accuracy']:.2f} % of 360 images (95 %" in card
    assert " %) |" in card
    assert "\nleanres evaluate digits.safetensors\n" in card
    assert f"NLL {found['nll']:.4f}" in card.replace("| NLL, ECE | ", "| NLL ")
    assert "| trained on | 1,257 images of digits (fingerprint" in card
    assert "leanres predict digits.safetensors IMAGES" in card


def test_a_card_of_a_run_measured_on_val_measures_the_file_there(tmp_path, leanres):
    words = ["--data", "digits", "--epochs", 1, "--set", "model={family='speednet', widths=[8]}"]
    leanres("train", "digits", *words, "--measure", "val", "--no-report", "--out", tmp_path / "r")
    assert leanres("export", tmp_path / "r", tmp_path / "w.safetensors", "--card").code == 0
    assert " of 180 images (95 %" in (tmp_path / "w.md").read_text()


def test_export_speaks_json(run_folder, tmp_path, leanres):
    done = json.loads(leanres("export", run_folder, tmp_path / "w.safetensors", "--json").out)
    assert done["path"] == str(tmp_path / "w.safetensors")
    assert done["agreement"] > 0.99
    assert done["bytes"] == (tmp_path / "w.safetensors").stat().st_size
    words = ["export", run_folder, tmp_path / "f.safetensors", "--full", "--json"]
    full = json.loads(leanres(*words).out)
    assert full["drift"] == 0 < done["drift"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("RUN", "x.onx"), ".onnx"),
        ((".", "x.onnx"), "holds no model.safetensors"),
        (("none", "x.onnx"), "none does not exist"),
        (("RUN", "x.onnx", "--card"), "--card describes a run's weights"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    leanres, mistake, run_folder, tmp_path, monkeypatch, words, told
):
    monkeypatch.chdir(tmp_path)
    mistake(leanres("export", *(run_folder if word == "RUN" else word for word in words)), told)
    assert not list(tmp_path.iterdir())
