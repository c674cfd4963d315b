"""Weights files: float16, small, with their network and preprocessing."""

from __future__ import annotations

from leanres.models.speednet import SpeedNetConfig
from leanres.runs.weights import load_classifier
from leanres.ship.export import export


def test_half_precision_is_half_as_large_and_keeps_every_class_but_a_few(run, tmp_path, images):
    done = export(run, tmp_path / "deep" / "half.safetensors", images)
    full = export(run, tmp_path / "full.safetensors", images, full=True)
    assert done.bytes == done.path.stat().st_size < 0.7 * full.bytes
    assert done.images == len(images)
    assert done.agreement > 0.99
    assert 0 < done.drift < 0.01
    assert (full.agreement, full.drift) == (1, 0)
    again = export(done.path, tmp_path / "again.safetensors", images)
    assert (again.agreement, again.drift) == (1, 0)


def test_the_file_carries_its_network_and_class_names(run, tmp_path, images, digits):
    export(run, tmp_path / "w.safetensors", images)
    known, config = load_classifier(tmp_path / "w.safetensors")
    assert config == SpeedNetConfig((8, 16), num_classes=10)
    assert known.preprocess.classes == digits.test.classes
