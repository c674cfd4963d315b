"""Ship as .onnx: takes uint8 images, gives probabilities, runs wherever ONNX does."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanres.data.image_files import input_rule
from leanres.io import write_bytes
from leanres.models.preprocess import ImageClassifier
from leanres.models.zoo import config_to_dict
from leanres.version import __version__


def write(path: Path, classifier: ImageClassifier, config: Any, full: bool) -> None:
    """Write the graph from uint8 images to probabilities; its metadata has the class names, and
    `input` says how an image file becomes its input.

    The weights are always float32, so `full` changes nothing.
    """
    del full
    preprocess = classifier.preprocess
    shape = (2, preprocess.channels, preprocess.size, preprocess.size)
    example = torch.zeros(shape, dtype=torch.uint8)
    with _silent_exporter():
        program = torch.onnx.export(
            nn.Sequential(classifier, nn.Softmax(1)).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    metadata = {
        "leanres": __version__,
        "model": json.dumps(config_to_dict(config)),
        "classes": json.dumps(preprocess.classes),
        "preprocess": json.dumps(asdict(preprocess)),
        "input": input_rule(preprocess.channels, preprocess.whites),
    }
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    write_bytes(path, proto.SerializeToString())


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Silence the exporter's warnings of packages that these networks do not use."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def probabilities(path: Path, images: Tensor) -> Tensor:
    """What ONNX Runtime answers: uint8 (N, C, size, size) -> float32 (N, K)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(answer)
