"""`leanres evaluate`."""

from __future__ import annotations

import io
import json

import layouts
import numpy as np
import pytest
import rich.console
import torch
from PIL import Image
from rich.cells import cell_len
from safetensors.torch import save_file

from leanres.cli.evaluate import _print_evaluation
from leanres.errors import shortened
from leanres.runs.weights import load_classifier, save_weights


def test_evaluate_reproduces_the_runs_figures(leanres, run_folder):
    result = json.loads((run_folder / "run.json").read_text())["result"]
    for target in (run_folder, run_folder / "model.safetensors"):
        figures = json.loads(leanres("evaluate", target, "--data", "digits", "--json").out)
        for key in ("accuracy", "accuracy_tta", "nll", "ece", "params", "n"):
            assert figures[key] == pytest.approx(result[key], abs=1e-6)


def test_evaluate_prints_metrics_and_the_confusion_matrix(leanres, run_folder):
    result = json.loads((run_folder / "run.json").read_text())["result"]
    lines = leanres("evaluate", run_folder).out.splitlines()  # on the run's own data
    share = f"{100 * result['accuracy']:.2f} %"
    assert lines[0].startswith(f"test accuracy {share} of 360 images (95 % interval ")
    assert "augmentation" not in lines[0]  # the recipe of the digits does not flip
    assert lines[1].startswith(f"NLL {result['nll']:.4f}, ECE {100 * result['ece']:.2f} %, ")
    assert lines[2].startswith("rows: true class")
    assert lines[3].split() == ["class", "acc", "%", *"0123456789"]
    table = [line.split() for line in lines[4:]]
    for label, (row, share) in enumerate(zip(table, result["per_class"], strict=True)):
        assert row[:2] == [str(label), f"{100 * share:.2f}"]
        counts = [0 if cell == "." else int(cell) for cell in row[2:]]
        assert counts == result["confusion"][label]


def shown(monkeypatch, width: int, classes: tuple[str, ...], confusion: np.ndarray) -> list[str]:
    """What evaluate prints of a result on a terminal of that width."""
    out = io.StringIO()
    terminal = rich.console.Console(file=out, width=width, highlight=False)
    for module in ("leanres.cli.console", "leanres.cli.evaluate"):
        monkeypatch.setattr(f"{module}.console", lambda: terminal)
    monkeypatch.setattr("leanres.cli.evaluate.say", lambda text: out.write(f"{text}\n"))
    shares = (confusion.diagonal() / confusion.sum(1)).tolist()
    result = {"confusion": confusion.tolist(), "per_class": shares, "n": int(confusion.sum())}
    result |= {"accuracy": 0.5, "tta": "none", "split": "test", "int8_weights": False, "params": 1}
    _print_evaluation(result | {"precision": "float32", "device": "cpu"}, classes)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("count", [3, 9, 40, 300])
def test_many_classes_and_long_names_stay_readable_in_80_columns(monkeypatch, count):
    classes = tuple(f"{'a class of forty-seven letters, with a num'} {i:04}" for i in range(count))
    confusion = 10 * np.eye(count, dtype=int)
    confusion[1, 0], confusion[2, 1] = 30, 5
    lines = shown(monkeypatch, 80, classes, confusion)
    assert max(map(len, lines[2:])) <= 80
    if count < 40:
        assert lines[2] == "rows: true class; columns: predicted class"
        return
    assert any("hardest of 300 classes" in line for line in lines) == (count == 300)
    start = lines.index("most confused classes (--json has the whole matrix)")
    assert len(lines[:start]) <= 4 + 40
    first, second = (line.split() for line in lines[start + 2 :])
    assert first[-2:] == ["30", "75.0"]
    assert second[-2:] == ["5", "33.3"]
    assert "0001 " in lines[start + 2]
    assert "0000 " in lines[start + 2]


def test_wide_letters_are_counted_as_two_columns(monkeypatch):
    classes = tuple(chr(0x4E00 + i) * 5 for i in range(6))  # Chinese: a matrix of 75 columns
    confusion = 10 * np.eye(6, dtype=int)
    for width, has_matrix in ((90, True), (70, False)):
        lines = shown(monkeypatch, width, classes, confusion)
        assert ("rows: true class; columns: predicted class" in lines) == has_matrix
        assert max(map(cell_len, lines[2:])) <= width


def test_evaluate_knows_what_a_run_held_out(leanres, run_folder):
    for split, n in (("val", 180), ("train", 1437 - 180), ("test", 360)):
        done = leanres("evaluate", run_folder, "--split", split, "--tta", "none", "--json")
        assert json.loads(done.out)["n"] == n


def test_evaluate_tells_what_int8_weights_would_cost(leanres, run_folder, tmp_path):
    """As a file whose weights were rounded by hand, one scale per output channel."""
    plain = json.loads(leanres("evaluate", run_folder, "--json").out)
    rounded = json.loads(leanres("evaluate", run_folder, "--json", "--int8-weights").out)
    assert (plain["int8_weights"], rounded["int8_weights"]) == (False, True)
    assert rounded["nll"] != plain["nll"]
    known, config = load_classifier(run_folder / "model.safetensors")
    for weight in known.model.parameters():
        if weight.ndim in (2, 4):
            values = weight.detach().numpy()
            largest = np.abs(values).reshape(len(values), -1).max(1)
            scale = (largest / np.float32(127)).reshape(-1, *[1] * (values.ndim - 1))
            values[:] = np.rint(values / scale) * scale
    save_weights(
        tmp_path / "by_hand.safetensors",
        known.model,
        config,
        known.preprocess,
        precision=known.precision,
    )
    expected = leanres("evaluate", tmp_path / "by_hand.safetensors", "--data", "digits", "--json")
    assert expected.code == 0, expected.err
    for key in ("accuracy", "nll", "ece"):
        assert rounded[key] == pytest.approx(json.loads(expected.out)[key], rel=1e-4)
    told = leanres("evaluate", run_folder, "--int8-weights").out
    assert "params, weights alone rounded to int8" in told


def test_weights_that_are_damaged_or_foreign_are_named(leanres, mistake, run_folder, tmp_path):
    whole = (run_folder / "model.safetensors").read_bytes()
    cases = {
        "cut.safetensors": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "text.safetensors": b"hello, this is not a weights file at all",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        mistake(leanres("evaluate", tmp_path / name, "--data", "digits"), name, "cannot be read")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    mistake(leanres("evaluate", tmp_path / "foreign.safetensors"), "no leanres metadata")


def test_evaluating_on_data_with_other_classes_is_refused(leanres, mistake, run_folder, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    mistake(leanres("evaluate", run_folder, "--data", tmp_path), "cats, dogs")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--split", "all"], "--split all: give test or val or train"),
        (["--tta", "flop"], "did you mean 'flip'"),
    ],
)
def test_other_mistakes_are_one_line(leanres, mistake, run_folder, words, part):
    mistake(leanres("evaluate", run_folder, *words), part)


def test_a_test_set_alone_is_measured_and_never_trained_on(leanres, mistake, three_runs, tmp_path):
    folder = layouts.write_idx(tmp_path / "raw", only_test=True)
    done = leanres("evaluate", three_runs / "a", "--data", folder, "--tta", "none")
    assert done.code == 0
    assert "test accuracy" in done.out
    words = ["evaluate", three_runs / "a", "--data", folder, "--split", "train"]
    mistake(leanres(*words), "idx has no train split: give --split test")
    words = ["train", "--data", folder, "--out", tmp_path / "run"]
    mistake(leanres(*words), "idx has test images alone: train on other data")
    assert not (tmp_path / "run").exists()


def test_val_images_that_chose_the_epoch_are_named_and_test_images_are_not(leanres, tiny, tmp_path):
    words = ["train", "digits", "--data", "digits", *tiny, "--epochs", 2, "--out", tmp_path / "run"]
    leanres(*words, "--set", "val=0.1", "--set", "keep_best=true", "--measure", "val")
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    on_val = leanres("evaluate", tmp_path / "run", "--split", "val").out.splitlines()[0]
    assert on_val.endswith(
        f"; epoch {result['epoch']} of 2, chosen on these same images (optimistic)"
    )
    figures = json.loads(leanres("evaluate", tmp_path / "run", "--split", "val", "--json").out)
    assert figures["chosen_by"] == "val"
    assert figures["accuracy"] == result["accuracy"]
    assert "chosen" not in leanres("evaluate", tmp_path / "run").out


@pytest.mark.usefixtures("wide")
def test_several_networks_are_a_table_their_ensemble_and_its_gain(leanres, three_runs, mistake):
    a, b = three_runs / "a", three_runs / "b"
    figures = json.loads(leanres("evaluate", a, b, "--json").out)
    whole, members = figures["ensemble"], figures["members"]
    assert [row["target"] for row in members] == [str(a), str(b)]
    assert figures["split"] == "test"
    lines = leanres("evaluate", a, b).out.splitlines()
    assert lines[0].split() == ["network", "accuracy", "NLL", "ECE", "macro", "F1"]
    rows = [*members, figures["mean"], whole]
    for name, line, row in zip((a, b, "mean", "ensemble"), lines[1:5], rows, strict=True):
        shown = [shortened(str(name), 30), f"{100 * row['accuracy']:.2f}", "%"]
        assert line.split()[:3] == shown
    share = f"test accuracy of the ensemble {100 * whole['accuracy']:.2f} % of 360 images (95 % "
    assert lines[5].startswith(share)
    assert f"; 2 networks, {figures['params']:,} params in all; float32 on cpu" in lines[6]
    gain = 100 * figures["gain_over_mean"]["difference"]
    assert lines[7].startswith(f"gain over the mean network: {gain:+.2f} points (95 % interval ")
    assert lines[8].startswith(f"gain over {figures['best']}, the best: ")
    mistake(leanres("evaluate", a, a), "is named twice: give different networks")
    mistake(leanres("evaluate", a, three_runs / "plain", "--split", "val"), "plain was trained on")
    mistake(leanres("evaluate", a, three_runs / "none"), "none")


def test_an_ensemble_of_rounded_weights_says_so(leanres, three_runs):
    a, b = three_runs / "a", three_runs / "b"
    rounded = json.loads(leanres("evaluate", a, b, "--json", "--int8-weights").out)
    plain = json.loads(leanres("evaluate", a, b, "--json").out)
    for one, other in zip(rounded["members"], plain["members"], strict=True):
        assert one["nll"] != other["nll"]
    assert ", weights alone rounded to int8; " in leanres("evaluate", a, b, "--int8-weights").out
