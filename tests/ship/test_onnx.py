"""ONNX files: images as they are stored in, probabilities out, in any batch size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import leanres
from leanres.data.image_files import input_rule
from leanres.errors import UserError
from leanres.runs.predictor import load_predictor
from leanres.ship.export import export

ORIENTATION = 0x0112  # the EXIF tag
ROOT = Path(__file__).resolve().parents[2]


def test_an_onnx_file_takes_images_as_they_are_stored_and_names_the_classes(
    run, tmp_path, images, digits
):
    done = export(run, tmp_path / "net.onnx", images)
    assert done.agreement == 1
    assert done.drift < 1e-4
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    expected = load_predictor(run, "cpu", "float32").logits(images).softmax(1)
    for count in (1, 7):
        (probs,) = session.run(None, {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(probs), expected[:count], atol=1e-5, rtol=0)
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["classes"])) == digits.test.classes
    assert json.loads(about["preprocess"])["size"] == 32
    assert about["input"] == input_rule(3, {})
    onnx.checker.check_model(str(done.path), full_check=True)


def save_wide(photo: Image.Image, path: Path) -> None:
    photo.resize((80, 40)).save(path)


def save_narrow_and_odd(photo: Image.Image, path: Path) -> None:
    photo.resize((33, 67)).save(path)


def save_turned(photo: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # by 90 degrees, as phones store photos
    photo.resize((61, 40)).save(path, exif=exif)


def save_16_bits(photo: Image.Image, path: Path) -> None:
    grey = np.asarray(photo.convert("L").resize((48, 50))).astype(np.uint16)
    Image.fromarray(grey * 255 + 100).save(path)


def save_32_bits(photo: Image.Image, path: Path) -> None:
    """More than 65,535, which is the last value that is told from white."""
    grey = np.asarray(photo.convert("L")).astype(np.int32)
    Image.fromarray(grey * 300 - 100).save(path, "TIFF")


def save_floats(photo: Image.Image, path: Path) -> None:
    grey = np.asarray(photo.convert("L")).astype(np.float32) / 250
    grey[0, :2] = np.nan, np.inf
    Image.fromarray(grey).save(path, "TIFF")


def save_floats_up_to_1(photo: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32) / 255).save(path, "TIFF")


def save_palette_with_a_transparent_colour(photo: Image.Image, path: Path) -> None:
    palette = photo.resize((50, 44)).quantize(8)
    palette.save(path, transparency=palette.getpixel((0, 0)))


def save_half_transparent(photo: Image.Image, path: Path) -> None:
    large = photo.resize((60, 60))
    large.putalpha(Image.linear_gradient("L").resize((60, 60)))
    large.save(path)


def guide_code() -> str:
    """The guide's Python that runs an ONNX file without leanres."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    (code,) = (block for block in blocks if "onnxruntime" in block)
    return code


SAVERS = (
    save_wide,
    save_narrow_and_odd,
    save_turned,
    save_16_bits,
    save_32_bits,
    save_floats,
    save_floats_up_to_1,
    save_palette_with_a_transparent_colour,
    save_half_transparent,
)


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory, images) -> Path:
    """A folder with first.onnx."""
    return export(run, tmp_path_factory.mktemp("onnx") / "first.onnx", images).path.parent


@pytest.mark.parametrize("save", SAVERS, ids=lambda save: save.__name__)
def test_the_guides_lines_without_leanres_answer_as_predict_does(
    run, shipped, images, monkeypatch, save
):
    monkeypatch.chdir(shipped)
    save(Image.fromarray(images[0].permute(1, 2, 0).numpy()), Path("photo.png"))
    names: dict[str, object] = {}
    exec(guide_code(), names)
    np.testing.assert_array_equal(names["images"], leanres.preprocess("photo.png", 32))
    np.testing.assert_array_equal(
        names["preprocess"]("photo.png", 32, white=4095),
        leanres.preprocess("photo.png", 32, whites={"integer": 4095, "float": 4095}),
    )
    opened = Image.open("photo.png")
    np.testing.assert_array_equal(names["images"], leanres.preprocess(opened, 32))
    predictor = load_predictor(run, "cpu", "float32")
    (found,) = predictor.predict([Path("photo.png")], top=10)
    expected = dict(zip(found.classes, found.probs, strict=True))
    assert names["probabilities"] == pytest.approx(
        [expected[name] for name in predictor.preprocess.classes], abs=1e-5
    )


def test_the_guides_reference_is_short():
    body = re.search(r"def preprocess\(.*?\n(.*?)\n\n", guide_code(), re.S)[1]
    assert len(body.splitlines()) <= 12


def test_the_rule_names_the_white_of_the_training_images():
    assert "255, 4095 or 65535, the first that" in input_rule(3, {})
    assert "rounded, white being 4095, in floats 1, 255" in input_rule(1, {"integer": 4095.0})
    assert "in floats 0.5;" in input_rule(1, {"float": 0.5})


def test_a_missing_package_names_the_extra(run, tmp_path, images, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx is not installed: pip install 'leanres\[export\]'"):
        export(run, tmp_path / "x.onnx", images)
    assert not list(tmp_path.iterdir())


def test_an_int8_file_computes_in_integers_with_a_scale_per_channel(
    grey_run, tmp_path, grey_digits
):
    test, path = grey_digits.test, tmp_path / "int8.onnx"
    calibration = grey_digits.train.images[::10]
    done = export(grey_run, path, test.images, labels=test.labels, calibration=calibration)
    assert done.precision == "int8"
    assert done.agreement >= 0.98
    assert abs(done.difference.difference) <= 0.01
    graph = onnx.load(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 6
    for layer in layers:
        images, weight = (made_by[name] for name in layer.input[:2])
        assert {images.op_type, weight.op_type} == {"DequantizeLinear"}
        values, scales = (stored[name] for name in weight.input[:2])
        assert values.dtype == np.int8
        assert scales.shape == (len(values),)
    (uint8,) = graph.input
    assert uint8.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    onnx.checker.check_model(str(path), full_check=True)


def test_int8_is_for_targets_that_have_it(run, tmp_path, images):
    with pytest.raises(UserError, match=r"\.safetensors has no int8; give a file that ends in"):
        export(run, tmp_path / "x.safetensors", images, calibration=images)
