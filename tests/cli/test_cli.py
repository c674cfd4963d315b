"""The command line as a user meets it: what it prints, and what a mistake gets."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import rich.console
import torch
from PIL import Image
from safetensors.torch import save_file

from leanres.cli import main
from leanres.cli.train import words
from leanres.data.sources import load_data
from leanres.models.zoo import MODELS
from leanres.training.recipe import Recipe
from leanres.training.recipes import RECIPES, load_recipe

TINY = ["--set", "model={family='speednet', widths=[8, 16]}", "--set", "batch_size=100"]
TINY += ["--no-report"]  # the page has its own tests


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ["train", "digits", "--data", "digits", "--out", folder, "--epochs", "6", *TINY]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve test digits as files, sized as a camera might, with two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    test = load_data("digits").test
    for i in range(12):
        pixels = test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"img{i}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("x")
    return folder


def mistake(outcome, *parts: str) -> None:
    """One line on stderr that names the parts, exit code 2, nothing like a traceback."""
    assert outcome.code == 2
    lines = [line for line in outcome.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1, outcome.err
    for part in parts:
        assert part in lines[0]


def test_help_is_quick_and_lists_every_command():
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "leanres", "--help"], capture_output=True, text=True, check=True
        )
        best = min(best, time.perf_counter() - start)
    for name in (
        "models",
        "summary",
        "data",
        "find-lr",
        "compare",
        "train",
        "resume",
        "evaluate",
        "predict",
        "report",
        "runs",
    ):
        assert f"\n  {name}" in done.stdout
    assert best < 0.6  # 0.15 s on a quiet machine; torch alone would take over 1 s


def test_models_as_json_gives_an_object_per_model(leanres):
    rows = json.loads(leanres("models", "--json").out)
    assert {row["name"] for row in rows} == set(MODELS)
    custom = next(row for row in rows if row["name"] == "custom-resnet")
    assert (custom["params"], custom["receptive_field"]) == (4_058_122, 38)
    assert custom["chained_receptive_field"] == 122
    assert all(row["macs"] > 0 for row in rows)


def test_models_and_summary_print_tables(leanres):
    table = leanres("models").out
    assert all(name in table for name in MODELS)
    summary = leanres("summary", "resnet26-97").out
    assert "4,978,810 params (within the budget of 5,000,000)" in summary
    assert "18.99 MiB float32" in summary
    assert "OVER" in leanres("summary", "resnet18", "--budget", "5M").out
    detail = json.loads(leanres("summary", "custom-resnet", "--json").out)
    assert detail["within_budget"] is True
    assert sum(row["params"] for row in detail["rows"]) == 4_058_122


def test_data_describes_the_digits_and_draws_two_pictures(leanres, tmp_path):
    done = leanres("data", "digits", "--out", tmp_path)
    assert done.code == 0
    assert "1,437" in done.out
    for name in ("samples.png", "augmented.png"):
        pixels = np.asarray(Image.open(tmp_path / name))
        assert pixels.std() > 10  # something is drawn
    facts = json.loads(leanres("data", "digits", "--out", tmp_path, "--json").out)
    assert facts["splits"]["test"]["num_images"] == 360


def test_data_gives_cifar10s_known_statistics(leanres, cifar_path, tmp_path):
    if cifar_path is None:  # nothing real at hand: the digits' own figures must come out the same
        facts = json.loads(leanres("data", "digits", "--out", tmp_path, "--json").out)
        pixels = load_data("digits").train.images.numpy() / 255
        np.testing.assert_allclose(facts["splits"]["train"]["mean"], pixels.mean((0, 2, 3)))
        return
    done = leanres("data", "cifar10", "--path", cifar_path, "--out", tmp_path)
    assert "mean 0.4914 0.4822 0.4465, std 0.2470 0.2435 0.2616" in done.out
    assert "50,000" in done.out
    assert "duplicates of test that are in train too: 0" in done.out


def test_recipes_are_listed_and_parse(leanres):
    rows = [json.loads(line) for line in leanres("recipes", "--json").out.splitlines()]
    assert rows[0]["name"] == "speed"
    assert rows[0]["own"]["n"] == 10
    assert rows[0]["flop"] == pytest.approx(3.2e14, rel=0.01)
    row = next(line for line in leanres("recipes").out.splitlines() if "plain-sgd" in line)
    shown = "plain-sgd resnet20 30 128 sgd 0.1, cosine 0.364 91.25 He et al. 2015"
    assert " ".join(row.split()).startswith(shown)


@pytest.mark.parametrize("name", ["speed", "resnet26-97", "custom-resnet-text"])
def test_a_recipe_is_printed_as_a_file_that_trains_the_same(leanres, tmp_path, name):
    (tmp_path / "mine.toml").write_text(leanres("recipes", name).out)
    assert load_recipe(str(tmp_path / "mine.toml")) == RECIPES[name]


def test_a_printed_recipe_explains_every_setting_and_names_the_choices(leanres):
    lines = leanres("recipes", "speed").out.splitlines()
    for field in fields(Recipe):
        at = next(i for i, line in enumerate(lines) if f"{field.name} = " in line[:30])
        assert lines[at - 1].startswith("# "), field.name
    assert any("there are: adadelta, adam, adamw, muon, sgd" in line for line in lines)
    assert max(len(line) for line in lines if line.startswith("#")) <= 100


def test_an_unknown_recipe_to_print_is_answered_with_the_nearest(leanres):
    done = leanres("recipes", "sped")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "did you mean 'speed'" in done.err


def test_evaluate_reproduces_the_runs_figure(leanres, trained):
    result = json.loads((trained / "run.json").read_text())["result"]
    for target in (trained, trained / "model.safetensors"):
        figures = json.loads(leanres("evaluate", target, "--data", "digits", "--json").out)
        for key in ("accuracy", "accuracy_tta", "nll", "ece", "params", "n"):
            assert figures[key] == pytest.approx(result[key], abs=1e-6)
    shown = leanres("evaluate", trained).out  # a run knows what it was trained on
    assert f"test accuracy {100 * result['accuracy']:.2f} % of 360" in shown
    assert "rows: true class" in shown


def test_a_terminal_shows_one_live_line(leanres, tmp_path, monkeypatch):
    out = io.StringIO()
    shown = rich.console.Console(file=out, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr("leanres.cli.progress.console", lambda stderr: shown)
    monkeypatch.setattr("leanres.cli.progress.REFRESH_S", 0.0)
    words = ["train", "digits", "--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *TINY]
    assert leanres(*words).code == 0
    text = out.getvalue()
    assert "\x1b[?25l" in text  # the cursor is hidden: the line is drawn over itself
    assert re.search(r"epoch 1/1.*loss \d\.\d+.*lr 0\.\d+.*images/s", text)
    assert re.search(r"epoch +1/1  train", text)


def test_evaluate_knows_what_a_run_held_out(leanres, trained):
    for split, n in (("val", 180), ("train", 1437 - 180), ("test", 360)):
        done = leanres("evaluate", trained, "--split", split, "--tta", "none", "--json")
        assert json.loads(done.out)["n"] == n


def test_only_defaults_are_left_out_of_a_command_for_another_process():
    plain = {"data": "cifar10", "size": 32, "path": None, "strict": False}
    assert words(["lr=1"], **plain, threads=32, seed=0) == [
        *("--set", "lr=1", "--threads", "32", "--seed", "0")
    ]
    assert words([], data="digits", size=48, strict=True) == [
        *("--data", "digits", "--size", "48", "--strict")
    ]


def test_evaluate_tells_what_int8_weights_would_cost(leanres, trained):
    plain = json.loads(leanres("evaluate", trained, "--json").out)
    rounded = json.loads(leanres("evaluate", trained, "--json", "--int8").out)
    assert (plain["int8"], rounded["int8"]) == (False, True)
    assert rounded["nll"] != plain["nll"]
    assert rounded["accuracy"] == pytest.approx(plain["accuracy"], abs=0.03)
    assert "params, weights as int8" in leanres("evaluate", trained, "--int8").out


def test_predict_gives_a_table_json_and_csv_and_names_what_is_broken(
    leanres, trained, pictures, tmp_path
):
    shown = leanres("predict", trained, pictures)
    assert shown.code == 0
    assert "broken.png" in shown.err
    assert str(pictures / "img11.png") in shown.out
    rows = [json.loads(x) for x in leanres("predict", trained, pictures, "--json").out.splitlines()]
    assert [Path(r["path"]).name for r in rows] == [f"img{i}.png" for i in range(12)]
    assert all(r["top"][0]["prob"] >= r["top"][1]["prob"] for r in rows)
    done = leanres("predict", trained, pictures, "--csv", tmp_path / "out.csv")
    assert "12 predictions" in done.out
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(t["ID"], t["Labels"]) for t in table] == [
        (f"img{i}", r["top"][0]["class"]) for i, r in enumerate(rows)
    ]
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")  # a name that is no UTF-8
    shutil.copy(pictures / "img3.png", odd)
    assert "caf?.png" in leanres("predict", trained, odd).out
    assert leanres("predict", trained, odd, "--csv", tmp_path / "odd.csv").code == 0
    assert b"caf\xe9," in (tmp_path / "odd.csv").read_bytes()
    labels = load_data("digits").test.labels[:12].tolist()
    right = sum(int(t["Labels"]) == label for t, label in zip(table, labels, strict=True))
    assert right >= 6  # six epochs of a tiny network: far above the one in ten of chance


def test_train_prints_what_happened_and_what_to_do_next(leanres, tmp_path):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *TINY]
    done = leanres("train", "digits", *words)
    assert done.code == 0
    assert "epoch   1/1" in done.out
    assert "test accuracy" in done.out
    assert f"next: leanres evaluate {tmp_path / 'run'}" in done.out
    assert "teach little" not in done.err
    mistake(leanres("train", "digits", *words), "exists already", "leanres resume")


def test_a_batch_that_leaves_few_steps_is_said(leanres, tmp_path):
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, "--no-report", *TINY]
    done = leanres("train", *words, "--set", "batch_size=700")
    assert done.code == 0
    assert "note: 2 steps of 700 images in all teach little" in done.err


def test_a_long_run_states_the_machines_rate_beside_its_time(leanres, tmp_path, monkeypatch):
    monkeypatch.setattr("leanres.runs.run.LONG_S", 0)
    monkeypatch.setattr("leanres.runs.run.matrix_rate", lambda device: 1.8349)
    words = ["--data", "digits", "--out", tmp_path / "run", "--epochs", 1, *TINY]
    words += ["--set", "precision=float32"]
    assert "float32 product on this machine: 1.83 TFLOP/s" in leanres("train", *words).out


def test_train_auto_says_in_one_line_that_it_falls_back_on_the_digits(
    leanres, tmp_path, monkeypatch
):
    monkeypatch.delenv("LEANRES_DATA", raising=False)
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("leanres.data.sources.cifar10.URL", "http://127.0.0.1:9/none.tar.gz")
    start = time.perf_counter()
    done = leanres("train", "--data", "auto", "--out", tmp_path / "r", "--epochs", 1, *TINY)
    assert done.code == 0
    assert "training on the embedded digits instead" in done.err
    assert "of digits, 1 epoch of" in done.out
    assert time.perf_counter() - start < 40
    monkeypatch.setenv("LEANRES_DATA", str(tmp_path / "r"))
    mistake(leanres("train", "--data", "auto"), "holds no CIFAR-10")


def test_measuring_val_without_val_images_is_refused_before_training(leanres, tmp_path):
    words = ["train", "--data", "digits", "--measure", "val", "--out", tmp_path / "r", *TINY]
    mistake(leanres(*words), "there are no val images")
    assert not (tmp_path / "r").exists()


def test_a_place_that_cannot_be_written_is_one_line(leanres):
    mistake(leanres("train", "--data", "digits", "--out", "/dev/null/x", *TINY), "/dev/null/x")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["summary", "resnet21"], ["no model 'resnet21'", "did you mean 'resnet"]),
        (["summary", "resnet20", "--budget", "many"], ["'many' is no count"]),
        (["train", "sped"], ["no recipe 'sped'", "did you mean 'speed'"]),
        (["train", "--set", "lrr=1"], ["no setting 'lrr'", "did you mean 'lr'"]),
        (["train", "--set", "lr"], ["give key=value"]),
        (["train", "--set", "lr=-1"], ["lr = -1"]),
        (["train", "--set", "model=resnet21"], ["did you mean 'resnet"]),
        (["train", "--measure", "train"], ["give test or val"]),
        (["train", "--tta", "flop"], ["did you mean 'flip'"]),
        (["train", "--device", "gpu"], ["'gpu' is not usable here"]),
        (["train", "--data", "mnist"], ["no data source 'mnist'"]),
        (["train", "--epochs", "x"], ["epochs"]),
        (["train", "mine.toml"], ["mine.toml cannot be read: No such file"]),
        (["resume", "nowhere"], ["is no run folder"]),
        (["evaluate", "nowhere"], ["nowhere does not exist"]),
        (["predict", "nowhere", "x.png"], ["nowhere does not exist"]),
        (["trian"], ["trian"]),
        (["train", "--lr", "1"], ["--lr"]),
        (["data", "nowhere/at/all"], ["is not a folder"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(leanres, words, parts):
    mistake(leanres(*words), *parts)


def test_weights_that_are_damaged_or_foreign_are_named(leanres, trained, tmp_path):
    whole = (trained / "model.safetensors").read_bytes()
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


def test_evaluating_on_data_with_other_classes_is_refused(leanres, trained, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    mistake(leanres("evaluate", trained, "--data", tmp_path), "cats, dogs")


def test_predicting_nothing_or_nonsense_is_one_line(leanres, trained, pictures, tmp_path):
    mistake(leanres("predict", trained, tmp_path), "no images")
    mistake(leanres("predict", trained, tmp_path / "gone.png"), "gone.png does not exist")
    mistake(leanres("predict", trained, pictures / "broken.png"), "broken.png cannot be read")
    mistake(leanres("predict", trained, pictures, "--strict"), "broken.png cannot be read")
    mistake(
        leanres("predict", trained, pictures, "--csv", tmp_path / "no" / "out.csv"), "cannot write"
    )


def test_a_pipe_that_closes_early_is_no_traceback():
    words = f"{sys.executable} -m leanres models --json | head -1"
    done = subprocess.run(
        ["bash", "-c", words],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr
