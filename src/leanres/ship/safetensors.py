"""Ship as .safetensors: float16 weights that `leanres predict` and `load_predictor` read."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from leanres.metrics.inference import predict_logits
from leanres.models.preprocess import ImageClassifier
from leanres.runs.weights import load_classifier, read_facts, save_weights
from leanres.ship.check import Answer
from leanres.ship.facts import Content

KEY = "shipped"  # of the metadata


def write(path: Path, content: Content) -> None:
    """Write a weights file in float16, or in float32 if the content is to be `full`."""
    known = content.classifier
    facts = {"temperature": known.temperature, KEY: dict(content.facts)}
    half, precision = not content.full, known.precision
    save_weights(path, known.model, content.config, known.preprocess, half, precision, facts)


def facts(path: Path) -> dict[str, str]:
    """What a weights file says of itself."""
    shipped = read_facts(path).get(KEY, {})
    return shipped if isinstance(shipped, dict) else {}


def load(path: Path) -> Answer:
    """The network in a weights file, as uint8 (N, C, size, size) -> float32 (N, K)."""
    classifier, _ = load_classifier(path)
    return lambda images: classify(classifier, images).softmax(1)


def classify(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Calibrated logits on the CPU: uint8 (N, C, size, size) -> float32 (N, K)."""
    logits = predict_logits(classifier.model, images, normalize=classifier.normalize)
    return classifier.calibrated(logits)
