"""What is shipped gives the answers of what was trained, or it is not written."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanres.data.sources import load_data
from leanres.errors import UserError
from leanres.io import CheckpointError
from leanres.metrics.classification import percent
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.preprocess import Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.predictor import load_predictor
from leanres.runs.weights import save_weights
from leanres.ship.export import TARGETS, DriftError, export
from leanres.ship.safetensors import write

SHIPPED = Path(__file__).resolve().parents[2] / "weights"
FAMILIES = [
    SpeedNetConfig((8, 16)),
    ResNetConfig((8, 16), (1, 1), shortcut="pad"),
    ResNetConfig((8, 16), (1, 1), block="wide", dropout=0.3),
    DavidNetConfig(),
    BranchNetConfig(),
]


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize(
    "config", FAMILIES, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'block', '')}"
)
def test_every_family_is_shipped_by_every_target(config, suffix, tmp_path, images, digits):
    torch.manual_seed(0)
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), digits.test.classes)
    save_weights(tmp_path / "net.safetensors", config.build(), config, preprocess)
    done = export(tmp_path / "net.safetensors", tmp_path / f"out{suffix}", images[:8], full=True)
    assert done.drift < 1e-4
    assert done.bytes == done.path.stat().st_size


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_shipped_file_replaces_the_old_one_and_leaves_nothing_beside_it(
    run, tmp_path, images, suffix
):
    out = tmp_path / "deep" / f"net{suffix}"
    out.parent.mkdir()
    out.write_text("old")
    done = export(run, out, images)
    assert (done.path, done.images) == (out, len(images))
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_size > 1000


def test_a_file_that_answers_otherwise_is_not_kept(run, tmp_path, images, monkeypatch):
    def negated(path, content):
        with torch.no_grad():
            content.classifier.model.head.weight.neg_()
        write(path, content)

    target = replace(TARGETS[".safetensors"], write=negated)
    monkeypatch.setitem(TARGETS, ".safetensors", target)
    (tmp_path / "old.safetensors").write_text("precious")
    with pytest.raises(DriftError, match=r"probability by 0\.\d+, .*; --full keeps float32"):
        export(run, tmp_path / "old.safetensors", images)
    with pytest.raises(DriftError, match=r"at most 0\.02 is accepted$"):
        export(run, tmp_path / "old.safetensors", images, full=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]


def test_a_target_of_a_users_own_is_one_entry(run, tmp_path, images, monkeypatch):
    monkeypatch.setitem(TARGETS, ".mine", TARGETS[".safetensors"])
    assert export(run, tmp_path / "net.mine", images, full=True).drift == 0


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_place_that_cannot_be_written_is_a_mistake(run, tmp_path, images, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        export(run, tmp_path / f"folder{suffix}", images)
    assert [p.name for p in tmp_path.iterdir()] == [f"folder{suffix}"]


def test_a_wrong_suffix_or_size_of_images_is_a_mistake(run, tmp_path, images):
    with pytest.raises(
        UserError, match=r"x\.onx: give a file that ends in \.s\w+ or \.onnx or \.tflite$"
    ):
        export(run, tmp_path / "x.onx", images)
    with pytest.raises(UserError, match="images of 3x8x8: the network takes 3x32x32"):
        export(run, tmp_path / "x.safetensors", images[:, :, :8, :8])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def real(cifar_path):
    """Where CIFAR-10 is: figures of shipped weights are of it and of nothing else."""
    if cifar_path is None:
        pytest.skip("the figure is of CIFAR-10, which is missing: set LEANRES_DATA")
    return cifar_path


def accuracy_on_card(file: Path) -> float:
    (told,) = re.findall(r"test accuracy \| (\S+) %", file.with_suffix(".md").read_text())
    return float(told) / 100


def test_the_weights_in_the_repository_give_the_figure_of_their_card(real):
    file = SHIPPED / "speednet.safetensors"
    found = load_predictor(file).evaluate(load_data("cifar10", real).test, "none")
    assert found["n"] == 10_000
    told = accuracy_on_card(file)
    # bfloat16 hardware decides a few images otherwise
    assert found["accuracy"] == pytest.approx(told, abs=0.001), percent(told)


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_every_file_in_the_repository_is_as_good_as_its_card_says(real, file):
    few = load_data("cifar10", real).test.subset(range(1000))
    found = load_predictor(file).evaluate(few, "none")["accuracy"]
    share = accuracy_on_card(file)
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1000))


def test_of_many_classes_a_file_that_changes_the_answers_is_not_kept(tmp_path, images, monkeypatch):
    """Every probability is about 0.001: none can change by 0.02."""
    torch.manual_seed(0)
    names, config = tuple(map(str, range(1000))), SpeedNetConfig((8, 16), num_classes=1000)
    network, preprocess = config.build(), Preprocess(32, (0.5,) * 3, (0.2,) * 3, names)
    with torch.no_grad():
        network.head.weight.mul_(0.1)
    save_weights(tmp_path / "net.safetensors", network, config, preprocess)
    out, plain = tmp_path / "out.safetensors", TARGETS[".safetensors"]
    assert export(tmp_path / "net.safetensors", out, images[:100]).agreement >= 0.98  # rounded
    precious = out.read_bytes()

    def second_best(probs):
        best = probs.topk(2).indices
        return probs.scatter(1, best.flip(1), probs.gather(1, best))

    for change, words in (
        (lambda p: p.flip(1), r"a probability by [\d.]+ % of the image's largest, and at most 5 %"),
        (second_best, r"0.0 % of \d+ images would keep their class, and at least 98 % have to"),
    ):

        def changed(path, change=change):
            answer = plain.load(path)
            return lambda images: change(answer(images))

        monkeypatch.setitem(TARGETS, ".safetensors", replace(plain, load=changed))
        with pytest.raises(DriftError, match=words):
            export(tmp_path / "net.safetensors", out, images[:100])
    assert out.read_bytes() == precious


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(run, tmp_path, images, monkeypatch):
    def full(path: Path, *_: object) -> None:
        raise CheckpointError(f"cannot write {path}: No space left on device")

    monkeypatch.setitem(TARGETS, ".onnx", replace(TARGETS[".onnx"], write=full, packages=()))
    with pytest.raises(CheckpointError) as caught:
        export(run, tmp_path / "x.onnx", images)
    assert str(caught.value) == f"cannot write {tmp_path / 'x.onnx'}: No space left on device"
