"""Facts: what a shipped file says of itself, and the network's answers that it is held to."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leanres.data.image_files import input_rule
from leanres.io import CheckpointError, parse_json
from leanres.metrics.classification import accuracy_interval
from leanres.models.preprocess import ImageClassifier, Preprocess
from leanres.models.zoo import config_to_dict
from leanres.registry import checked
from leanres.runs.run_json import INFO, read_info
from leanres.runs.weights import TEMPERATURE
from leanres.version import __version__

MAX_IMAGES = 100_000  # whose answers a file may carry


@dataclass(frozen=True)
class Content:
    """What a target writes: the network with its preprocessing, and what the file says of itself.

    `facts` is text by name. With `full` the weights are float32 even if the target rounds; with
    `calibration`, uint8 training images (N, C, size, size), the file computes in int8.
    """

    classifier: ImageClassifier
    config: Any
    facts: Mapping[str, str] = field(default_factory=dict)
    full: bool = False
    calibration: Tensor | None = None


class Answers(NamedTuple):
    """A network's answers to N images, as far as a file carries them.

    The class of each, its probability, and what it is ahead of the second by. `probs` (N, K) where
    the network itself is at hand.
    """

    classes: Tensor
    top: Tensor
    margin: Tensor
    probs: Tensor | None = None

    @classmethod
    def of(cls, probs: Tensor) -> Answers:
        """The answers of probabilities (N, K)."""
        best = probs.topk(min(2, probs.shape[1]))
        first, second = best.values.T[[0, -1]]
        return cls(best.indices[:, 0], first, first - second, probs)

    def packed(self) -> str:
        """About five bytes an image, as text."""
        columns = (self.classes.numpy().astype("<u2"), self.top.numpy().astype("<f2"))
        parts = b"".join(column.tobytes() for column in columns)
        parts += self.margin.numpy().astype("<f2").tobytes()
        return base64.b85encode(zlib.compress(parts, 9)).decode()

    @classmethod
    def unpacked(cls, text: str, n: int) -> Answers:
        """The answers of `packed` to n images. ValueError for anything else."""
        if not 0 < n <= MAX_IMAGES:
            raise ValueError(f"answers to {n} images")
        parts = zlib.decompressobj().decompress(base64.b85decode(text), 6 * n + 1)
        if len(parts) != 6 * n:
            raise ValueError(f"not the answers to {n} images")
        classes = torch.from_numpy(np.frombuffer(parts, "<u2", n).astype(np.int64))
        floats = torch.from_numpy(np.frombuffer(parts, "<f2", 2 * n, 2 * n).astype(np.float32))
        return cls(classes, floats[:n], floats[n:])


def digest(images: Tensor) -> str:
    """sha256 of uint8 images (N, C, H, W) in their order."""
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


def describe(
    classifier: ImageClassifier,
    config: Any,
    origin: Mapping[str, Any],
    checked_on: Mapping[str, Any],
    is_int8: bool,
) -> dict[str, str]:
    """Facts of a file: how it takes images, what trained it, and the check that it has to pass.

    origin: as `origin_of`; checked_on: as `check_facts`.
    """
    preprocess = classifier.preprocess
    return {
        "leanres": __version__,
        "model": json.dumps(config_to_dict(config)),
        "classes": json.dumps(preprocess.classes),
        "preprocess": json.dumps(asdict(preprocess)),
        "input": input_rule(preprocess.channels, preprocess.whites),
        "temperature": repr(classifier.temperature),
        "trained": json.dumps(origin),
        "checked": json.dumps(checked_on),
        "precision": "int8" if is_int8 else "float32",
    }


def origin_of(target: Path) -> dict[str, Any]:
    """The name of a run's data and its fingerprints; empty for a weights file."""
    if not (target / INFO).exists():
        return {}
    data = read_info(target)["data"]
    return {"data": data["name"], "fingerprints": data["fingerprints"]}


def check_facts(
    answers: Answers, images: Tensor, labels: Tensor | None, data: str
) -> dict[str, Any]:
    """The network's answers to the images that check a file, its accuracy and the interval of it.

    data: the name of the data set.
    """
    told = {"data": data, "n": len(images), "images": digest(images), "answers": answers.packed()}
    if labels is None:
        return told
    share = float((answers.classes == labels).double().mean())
    low, high = accuracy_interval({"accuracy": share, "n": len(images)})
    return told | {"accuracy": share, "low": low, "high": high}


class Known(NamedTuple):
    """What a file says of itself, read and checked."""

    preprocess: Preprocess
    temperature: float
    is_int8: bool
    checked: dict[str, Any]
    answers: Answers


def read(facts: Mapping[str, Any], path: Path) -> Known:
    """The facts of a file. CheckpointError for one that has none, or others than ours."""
    try:
        about = parse_json(facts["checked"])
        return Known(
            Preprocess(**parse_json(facts["preprocess"])),
            checked("temperature", parse_json(facts["temperature"]), TEMPERATURE),
            facts["precision"] == "int8",
            about,
            Answers.unpacked(about["answers"], about["n"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error):
        raise CheckpointError(
            f"{path} does not say what it was checked on: give a file of `leanres export`"
        ) from None
