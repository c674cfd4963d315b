"""Ship as .safetensors: float16 weights that `leanres predict` and `load_predictor` read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from leanres.metrics.inference import predict_logits
from leanres.models.preprocess import ImageClassifier
from leanres.runs.weights import load_classifier, save_weights


def write(path: Path, classifier: ImageClassifier, config: Any, full: bool) -> None:
    """Write a weights file in float16, or in float32 with `full`."""
    save_weights(
        path, classifier.model, config, classifier.preprocess, not full, classifier.precision
    )


def probabilities(path: Path, images: Tensor) -> Tensor:
    """What the network in a weights file answers: uint8 (N, C, size, size) -> float32 (N, K)."""
    classifier, _ = load_classifier(path)
    return classify(classifier, images)


def classify(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Probabilities on the CPU: uint8 (N, C, size, size) -> float32 (N, K)."""
    return predict_logits(classifier.model, images, normalize=classifier.normalize).softmax(1)
