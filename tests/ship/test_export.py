"""What is exported gives the answers of what was trained, preprocessing included."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from leanres.data.sources import load_data
from leanres.errors import UserError
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.predictor import load_predictor as load_predictor
from leanres.runs.run import fit
from leanres.runs.weights import Preprocess, load_weights, save_weights
from leanres.ship import export as exports
from leanres.ship.export import DriftError, export
from leanres.training.device import Device
from leanres.training.recipes import RECIPES

DIGITS = load_data("digits")
IMAGES = DIGITS.test.images
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "weights"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small network that has learned the digits, with val images held out."""
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = replace(RECIPES["digits"], model=SpeedNetConfig((8, 16)), epochs=3)
    assert fit(folder, recipe, DIGITS, Device("cpu", "float32", compiled=False))["accuracy"] > 0.8
    return folder


def test_half_precision_is_half_as_large_and_keeps_every_class_but_a_few(run, tmp_path):
    done = export(run, tmp_path / "deep" / "half.safetensors", IMAGES)
    full = export(run, tmp_path / "full.safetensors", IMAGES, full=True)
    assert done.bytes == done.path.stat().st_size < 0.7 * full.bytes
    assert done.images == len(IMAGES)
    assert done.agreement > 0.99
    assert 0 < done.drift < 0.01
    assert (full.agreement, full.drift) == (1, 0)
    again = export(done.path, tmp_path / "again.safetensors", IMAGES)
    assert (again.agreement, again.drift) == (1, 0)


def test_an_onnx_file_takes_images_as_they_are_stored_and_names_the_classes(
    run, tmp_path, monkeypatch
):
    done = export(run, tmp_path / "net.onnx", IMAGES)
    assert done.agreement == 1
    assert done.drift < 1e-4
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    expected = load_predictor(run, "cpu", "float32").logits(IMAGES).softmax(1)
    for count in (1, 7):
        (probs,) = session.run(None, {"images": IMAGES[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(probs), expected[:count], atol=1e-5, rtol=0)
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == DIGITS.test.classes
    assert json.loads(about["preprocess"])["size"] == 32
    onnx.checker.check_model(str(done.path), full_check=True)
    # The guide's lines for those without leanres.
    monkeypatch.chdir(tmp_path)
    done.path.rename("first.onnx")
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save("photo.png")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    (code,) = (block for block in blocks if "onnxruntime" in block)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["probabilities"] == pytest.approx(expected[0].numpy(), abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig((8, 16), (1, 1), shortcut="pad"),
        ResNetConfig((8, 16), (1, 1), block="wide", dropout=0.3),
        DavidNetConfig(),
        BranchNetConfig(),
    ],
    ids=lambda c: f"{type(c).__name__}-{getattr(c, 'block', '')}",
)
def test_every_family_exports(config, tmp_path):
    torch.manual_seed(0)
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), DIGITS.test.classes)
    save_weights(tmp_path / "net.safetensors", config.build(), config, preprocess)
    done = export(tmp_path / "net.safetensors", tmp_path / "net.onnx", IMAGES[:8])
    assert done.drift < 1e-4


def test_a_file_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch):
    def spoilt(out, model, config, preprocess, full):
        with torch.no_grad():
            model.head.weight.neg_()
        save_weights(out, model, config, preprocess)

    monkeypatch.setitem(exports.FORMATS, ".safetensors", spoilt)
    (tmp_path / "old.safetensors").write_text("precious")
    with pytest.raises(DriftError, match="would be off by"):
        export(run, tmp_path / "old.safetensors", IMAGES)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]


def test_a_card_gives_the_figures_of_the_file(run, tmp_path, leanres):
    out = tmp_path / "digits.safetensors"
    done = leanres("export", run, out, "--card")
    assert done.code == 0
    assert "keep their class" in done.out
    card = out.with_suffix(".md").read_text()
    found = json.loads(leanres("evaluate", out, "--data", "digits", "--json").out)
    assert f"| test accuracy | {100 * found['accuracy']:.2f} % (" in card
    assert f"{100 * found['accuracy_tta']:.2f} % with flip-shift) of 360 (95 %" in card
    assert f"| NLL, ECE | {found['nll']:.4f} nats" in card
    assert "| trained on | 1,257 images of digits (fingerprint" in card
    assert "leanres predict digits.safetensors IMAGES" in card


def test_a_card_of_a_run_measured_on_val_measures_the_file_there(tmp_path, leanres):
    words = ["--data", "digits", "--epochs", 1, "--set", "model={family='speednet', widths=[8]}"]
    leanres("train", "digits", *words, "--measure", "val", "--no-report", "--out", tmp_path / "r")
    assert leanres("export", tmp_path / "r", tmp_path / "w.safetensors", "--card").code == 0
    assert " of 180 (95 %" in (tmp_path / "w.md").read_text()


def test_export_speaks_json(run, tmp_path, leanres):
    done = json.loads(leanres("export", run, tmp_path / "w.safetensors", "--json").out)
    assert done["path"] == str(tmp_path / "w.safetensors")
    assert done["agreement"] > 0.99


def test_mistakes_are_one_line(run, tmp_path, leanres, monkeypatch):
    (run.parent / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        export(run, run.parent / "folder.onnx", IMAGES)
    assert not (run.parent / ".folder.onnx").exists()
    for words, told in (
        ((run, tmp_path / "x.onx"), ".onnx"),
        ((tmp_path, tmp_path / "x.onnx"), "holds no model.safetensors"),
        ((tmp_path / "none", tmp_path / "x.onnx"), "none does not exist"),
        ((run, tmp_path / "x.onnx", "--card"), "--card tells of a run's weights"),
    ):
        done = leanres("export", *words)
        assert done.code == 2
        assert told in done.err
        assert done.err.count("\n") == 1
    with pytest.raises(UserError, match="images of 3x8x8: the network takes 3x32x32"):
        export(run, tmp_path / "x.safetensors", IMAGES[:, :, :8, :8])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leanres\[export\]'"):
        export(run, tmp_path / "x.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def real(cifar_path):
    """Where CIFAR-10 lies: figures of shipped weights are of it and of nothing else."""
    if cifar_path is None:
        pytest.skip("the figure is of CIFAR-10, which is not here: set LEANRES_DATA")
    return cifar_path


def test_the_weights_in_the_repository_give_the_figure_of_their_card(real, leanres):
    words = ["evaluate", SHIPPED / "speednet.safetensors", "--path", real, "--json"]
    found = json.loads(leanres(*words, "--tta", "none").out)
    (told,) = re.findall(r"test accuracy \| (\S+) %", (SHIPPED / "speednet.md").read_text())
    assert found["n"] == 10_000
    # bfloat16 hardware decides a few images otherwise
    assert 100 * found["accuracy"] == pytest.approx(float(told), abs=0.1)


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_every_file_in_the_repository_is_as_good_as_its_card_says(real, file):
    few = load_data("cifar10", real).test.subset(range(1000))
    found = load_predictor(file).evaluate(few, "none")["accuracy"]
    (told,) = re.findall(r"test accuracy \| (\S+) %", file.with_suffix(".md").read_text())
    share = float(told) / 100
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1000))


def test_the_weights_that_are_shipped_carry_their_network(run, tmp_path):
    export(run, tmp_path / "w.safetensors", IMAGES)
    _, config, preprocess = load_weights(tmp_path / "w.safetensors")
    assert config == SpeedNetConfig((8, 16), num_classes=10)
    assert preprocess.classes == DIGITS.test.classes
