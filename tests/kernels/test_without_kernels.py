"""Without `leanres.kernels` everything still runs: training, evaluation, export, resuming."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import leanres as package

NETWORK = "model={family='speednet', widths=[8, 16]}"
TRAIN = ["train", "digits", "--data", "digits", "--epochs", "2", "--set", NETWORK]
MISSING = "PyTorch's: leanres.kernels is not installed"
GUESSING = 0.1  # the accuracy of a network that has learned nothing of ten classes
ONNX = find_spec("onnx") is not None and find_spec("onnxruntime") is not None
# Several command lines in one process.
COMMANDS = """
import json, sys
from leanres.cli import main
for argv in json.loads(sys.argv[1]):
    try:
        main(argv)
    except SystemExit as end:
        assert not end.code, end.code
"""


def run_without_kernels(commands: list[list[str]], site: Path) -> str:
    """What a copy of the package without the folder of the kernels prints; it must succeed."""
    without = shutil.ignore_patterns("kernels", "__pycache__")
    copy = shutil.copytree(Path(package.__file__).parent, site / "leanres", ignore=without)
    assert not (copy / "kernels").exists()
    argv = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


class Outcome(NamedTuple):
    folder: Path  # of the run
    evaluated: dict[str, Any]  # what `evaluate` and `export` print
    exported: list[dict[str, Any]]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A network, trained, evaluated, exported and shown on a page by a package without kernels."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    targets = [folder / "a.safetensors", *[folder / "a.onnx"] * ONNX]
    train = [*TRAIN, "--out", str(folder), "--json"]
    export = [["export", str(folder), str(out), "--json"] for out in targets]
    commands = [train, ["evaluate", str(folder), "--json"], *export]
    output = run_without_kernels(commands, tmp_path_factory.mktemp("site")).splitlines()
    _, evaluated, *exported = (json.loads(line) for line in output if line.startswith("{"))
    return Outcome(folder, evaluated, exported)


def test_a_run_without_kernels_is_measured_and_says_so(without):
    run_info = info(without.folder)
    assert run_info["hardware"]["kernels"] == MISSING
    assert run_info["result"]["split"] == "test"
    assert run_info["result"]["accuracy"] > 2 * GUESSING
    assert (without.folder / "report.html").exists()


def test_its_accuracy_is_the_same_with_kernels(without, leanres):
    accuracy = info(without.folder)["result"]["accuracy"]
    assert without.evaluated["accuracy"] == pytest.approx(accuracy)
    with_kernels = json.loads(leanres("evaluate", without.folder, "--json").out)
    assert with_kernels["accuracy"] == pytest.approx(accuracy, abs=0.003)  # an image of 360


def test_it_exports_to_every_target_that_is_installed(without):
    assert len(without.exported) == 1 + ONNX
    for done in without.exported:
        assert done["agreement"] > 0.99  # weights are rounded to float16
        assert Path(done["path"]).stat().st_size == done["bytes"]


def test_continuing_with_kernels_says_that_it_is_not_bit_for_bit(without, leanres, tmp_path):
    folder = shutil.copytree(without.folder, tmp_path / "copy")
    done = leanres("resume", folder, "--epochs", 3, "--no-report")
    assert done.code == 0, done.err
    said = " ".join((done.out + done.err).split())  # unwrapped
    assert "not be bit-identical" in said
    now = info(folder)["resumed"][-1]["hardware"]["kernels"]
    assert f"kernels changed from {MISSING} to {now}" in said
