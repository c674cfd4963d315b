"""Absurd learning rates and channels without any contrast: one line, exit code 0 or 2."""

from __future__ import annotations

import pytest

from leanres.runs.layout import CHECKPOINTS
from leanres.runs.run_json import read_info
from leanres.training.optim import OPTIMIZERS

TINY = ("--set", "model={family='resnet', widths=[8], depths=[1]}", "--set", "batch_size=400")
DIGITS = ("--data", "digits", "--size", 8, *TINY, "--set", "precision=float32", "--set", "val=100")
TRAIN = ("train", "plain-sgd", *DIGITS, "--epochs", 2, "--no-report")
COMMANDS = {
    "train": TRAIN,
    "find-lr": ("find-lr", "plain-sgd", *DIGITS, "--steps", 32, "--lr-min", 1),
    "compare": ("compare", "schedules", *DIGITS, "--epochs", 2, "--seeds", "0"),
}
ABSURD = ("--set", "lr=1000", "--set", "warmup=0", "--set", "bias_lr=1000")
DIVERGES = (*ABSURD, "--set", "optimizer=sgd", "--set", "momentum=0.99")


def one_line(outcome, *parts: str) -> None:
    """The outcome of a mistake: exit code 2 and one line that is no note."""
    lines = [line for line in outcome.err.splitlines() if not line.startswith("note:")]
    assert outcome.code == 2
    assert len(lines) == 1
    for part in ("leanres: ", *parts):
        assert part in lines[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_an_absurd_learning_rate_is_survived_or_told(
    leanres, tmp_path, monkeypatch, command, optimizer
):
    monkeypatch.chdir(tmp_path)
    outs = {"train": ("--out", "run"), "find-lr": ("--lr-max", 1000)}
    rate = ABSURD if command == "train" else ()
    words = (*COMMANDS[command], *outs[command], *rate, "--set", f"optimizer={optimizer}")
    done = leanres(*words)
    if done.code:
        one_line(done, "lr")
    if command == "train":
        again = leanres("resume", "run", "--no-report")
        one_line(again, "finite" if done.code else "is finished")


def test_a_diverged_run_names_the_last_good_checkpoint(leanres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line(
        leanres(*TRAIN, *DIVERGES, "--out", "run"),
        "not finite",
        f"checkpoint is run/{CHECKPOINTS}/0",
        "a lower lr",
    )


def test_a_comparison_of_runs_that_diverge_ends_in_lines(leanres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    longer = ("compare", "schedules", *DIGITS, "--epochs", 8, "--seeds", "0")
    done = leanres(*longer, *DIVERGES, "--out", "compared")
    assert done.code == 2
    *told, last = done.err.splitlines()
    assert all(line.startswith(("note:", "started", "diverged compared/")) for line in told)
    assert last.startswith("leanres: 2 of 2 are without a result; compared/cosine-0 diverged: ")


@pytest.mark.parametrize("std", ["[0, 0, 0]", "[1e-300, 1, 0]"])
def test_channels_without_contrast_are_scaled_as_if_by_one_grey_level(
    leanres, tmp_path, monkeypatch, std
):
    monkeypatch.chdir(tmp_path)
    words = (*TRAIN, "--set", f"std={std}", "--set", "mean=[0, 0, 0]", "--out", "run")
    assert leanres(*words).code == 0
    assert min(read_info(tmp_path / "run")["preprocess"]["std"]) == 1 / 255
