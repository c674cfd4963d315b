"""Weights whose metadata names odd networks, preprocessing and classes; damaged headers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes

from hostile.cases import ODD, Case, mutated, written
from leanres.models.preprocess import Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import config_to_dict
from leanres.runs.weights import KEY, _checksum, load_classifier, save_weights


def metadata(about: dict[str, Any]) -> bytes:
    """A weights file with this metadata, whose checksum is right."""
    state = ResNetConfig((4,), (1,)).build().state_dict()
    whole = about | {"sha256": _checksum(state, about)}
    return tensors_to_bytes(state, {KEY: json.dumps(whole)})


def use_weights(path: Path) -> None:
    """Load a network and use it; it has to answer with probabilities of its classes."""
    classifier, config = load_classifier(path)
    size = classifier.preprocess.size
    with torch.no_grad():
        answer = classifier(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert answer.shape == (1, config.num_classes) == (1, len(classifier.preprocess.classes))
    assert all(name.isprintable() for name in classifier.preprocess.classes)


def weights(folder: Path, count: int, rng: random.Random) -> Iterator[Case]:
    path, classes = folder / "model.safetensors", tuple("abcdefghij")
    config = ResNetConfig((4,), (1,))
    preprocess = Preprocess(32, (0.5,) * 3, (0.2,) * 3, classes)
    save_weights(path, config.build(), config, preprocess)
    whole = path.read_bytes()
    good = {"model": config_to_dict(config), "preprocess": asdict(preprocess), "version": "1"}

    def case(name: str, content: bytes) -> Case:
        return Case("weights", name, lambda: use_weights(written(path, content)), refused=False)

    for key in (*good["model"], "widths", "depths", "stem_width", "more"):
        for value in ODD:
            about = good | {"model": good["model"] | {key: value}}
            yield case(f"model.{key} = {str(value)[:30]}", metadata(about))
    for key in good["preprocess"]:
        for value in ODD:
            about = good | {"preprocess": good["preprocess"] | {key: value}}
            yield case(f"preprocess.{key} = {str(value)[:30]}", metadata(about))
    for family, settings in (
        ("resnet", {"widths": [4] * 1000, "depths": [1000] * 1000}),
        ("resnet", {"widths": [65_536] * 9, "depths": [60] * 9}),
        ("speednet", {"widths": [65_536] * 16, "depth": 1000}),
        ("speednet", {"widths": [8], "whiten_px": 64}),
        ("davidnet", {"widths": [65_536] * 4}),
        ("branchnet", {"widths": [65_536] * 4, "num_classes": 1_000_000}),
    ):
        yield case(f"large {family}", metadata(good | {"model": {"family": family} | settings}))
    for text in ("[" * 100_000, '{"model":' * 100_000, "null", "3", '"a"', "", "{", "9" * 10_000):
        state = config.build().state_dict()
        yield case(f"metadata {text[:20]}", tensors_to_bytes(state, {KEY: text}))
    yield case("header of 2^63", struct.pack("<Q", 2**63) + b"{}")
    yield case("header of 90 MB", struct.pack("<Q", 90_000_000) + b" " * 90_000_000)
    yield case("deep header", struct.pack("<Q", 200_000) + b"[" * 200_000)
    length = 8 + int.from_bytes(whole[:8], "little")
    for i in range(count):
        yield case(f"{i}", mutated(whole[:length], rng) + whole[length:])
