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


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory):
    """Grey digits, learned well enough to be computed in int8."""
    from leanres.cli import main

    folder = tmp_path_factory.mktemp("grey") / "run"
    words = ["train", "digits", "--data", "digits", "--channels", "1", "--epochs", "3"]
    network = "model={family='speednet', widths=[16, 32]}"
    with pytest.raises(SystemExit) as end:
        main([*words, "--set", network, "--no-report", "--out", str(folder)])
    assert not end.value.code
    return folder


def test_an_int8_file_is_checked_calibrated_and_verified_again(grey_run, tmp_path, leanres):
    out = tmp_path / "digits.onnx"
    done = leanres("export", grey_run, out, "--int8")
    assert done.code == 0, done.err
    for told in (
        "checked on  360 images, in int8 by ONNX Runtime\n",
        " keep their class\n",
        "difference ",
        "ms: one image, one thread, median",
        "\ncalibrated by temperature 0.",
    ):
        assert told in done.out
    assert all(len(line) <= 80 for line in done.out.replace(str(out), "OUT").splitlines())
    kept = json.loads((tmp_path / "digits.onnx.json").read_text())
    assert kept["precision"] == "int8"
    assert kept["ece"] < kept["ece_before"] / 2
    again = leanres("verify", out)
    assert again.code == 0, again.err
    assert again.out.endswith("digits.onnx answers the images of its export as the network did\n")
    told = json.loads(leanres("verify", out, "--data", "digits", "--json").out)
    for key in ("accuracy", "agreement", "bytes", "difference", "network_accuracy"):
        assert told[key] == kept[key]


def test_probabilities_are_the_networks_own_where_that_is_asked_for(grey_run, tmp_path, leanres):
    out = tmp_path / "own.safetensors"
    done = leanres("export", grey_run, out, "--uncalibrated", "--full", "--card")
    assert "no temperature was fitted" in done.out
    told = json.loads((tmp_path / "own.safetensors.json").read_text())
    assert (told["temperature"], told["drift"]) == (1, 0)
    assert "| checked on | 360 images, in float32 by PyTorch |" in (tmp_path / "own.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("none.onnx",), "none.onnx does not exist"),
        (("x.txt",), "x.txt: give a file that ends in"),
        (("x.onnx",), "x.onnx was not written by leanres, or was changed since"),
        (("x.safetensors",), "x.safetensors cannot be read as weights"),
    ],
)
def test_what_cannot_be_verified_is_one_line(leanres, mistake, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    for name in ("x.txt", "x.onnx", "x.safetensors"):
        (tmp_path / name).write_bytes(b"\x08" * 1000)
    mistake(leanres("verify", *words), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("RUN", "x.onx"), ".onnx"),
        (("RUN", "x.safetensors", "--int8"), ".safetensors has no int8"),
        ((".", "x.onnx"), ". holds no network: give a run folder"),
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
