"""ONNX files: images as they are stored in, probabilities out, in any batch size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

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
    onnx.checker.check_model(str(done.path), full_check=True)


@pytest.mark.parametrize("size", [(32, 32), (61, 40), (40, 75)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_guides_lines_without_leanres_answer_as_predict_does(
    run, tmp_path, images, monkeypatch, size, orientation
):
    monkeypatch.chdir(tmp_path)
    export(run, "first.onnx", images)
    photo = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize(size)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation  # 6: turned by 90 degrees, as phones store photos
    photo.save("photo.png", exif=exif)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    (code,) = (block for block in blocks if "onnxruntime" in block)
    names: dict[str, object] = {}
    exec(code, names)
    predictor = load_predictor(run, "cpu", "float32")
    (found,) = predictor.predict([Path("photo.png")], top=10)
    expected = dict(zip(found.classes, found.probs, strict=True))
    assert names["probabilities"] == pytest.approx(
        [expected[name] for name in predictor.preprocess.classes], abs=1e-5
    )


def test_a_missing_package_names_the_extra(run, tmp_path, images, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx is not installed: pip install 'leanres\[export\]'"):
        export(run, tmp_path / "x.onnx", images)
    assert not list(tmp_path.iterdir())
