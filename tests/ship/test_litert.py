"""LiteRT files: the same answers as the network's, in floats and in int8."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import leanres
from leanres.runs.predictor import load_predictor
from leanres.ship.export import export
from leanres.ship.litert import load

pytest.importorskip("litert_torch", reason=".tflite needs litert-torch: the extra litert")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


def test_an_int8_file_is_small_and_is_as_often_right(grey_run, tmp_path, grey_digits):
    test, calibration = grey_digits.test, grey_digits.train.images[::3]
    whole = export(grey_run, tmp_path / "f.tflite", test.images, labels=test.labels)
    assert (whole.agreement, whole.drift < 1e-4) == (1, True)
    path = tmp_path / "int8.tflite"
    done = export(grey_run, path, test.images, labels=test.labels, calibration=calibration)
    assert done.bytes < 0.6 * whole.bytes
    assert done.agreement >= 0.98
    assert (load(path)(test.images[:9]).sum(1) - 1).abs().max() < 0.05


def test_the_guides_lines_answer_as_the_network_does(grey_run, tmp_path, grey_digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = grey_digits.test.images
    Image.fromarray(images[0, 0].numpy()).save("photo.png")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    (code,) = (block for block in blocks if "ai_edge_litert" in block)
    expected = load_predictor(grey_run, "cpu", "float32").logits(images[:1]).softmax(1)[0]
    for calibration, within in ((None, 1e-4), (images[:100], 0.1)):
        export(grey_run, "first.tflite", images, calibration=calibration)
        names = {"preprocess": lambda path, size: leanres.preprocess(path, size, channels=1)}
        exec(code, names)
        found = torch.from_numpy(names["probabilities"]).float()
        torch.testing.assert_close(found, expected, atol=within, rtol=0)
