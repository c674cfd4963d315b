"""Ship as .onnx: takes uint8 images, gives probabilities, runs wherever ONNX does."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanres.io import MIB, CheckpointError, open_data, write_bytes
from leanres.models.preprocess import ImageClassifier
from leanres.ship.check import Answer
from leanres.ship.facts import Content

MAX_BYTES = 2048 * MIB  # of one protobuf message


def write(path: Path, content: Content) -> None:
    """Write the graph from uint8 images to probabilities, with the facts as its metadata.

    The weights are float32, so `full` changes nothing; with `calibration` the graph computes in
    int8. The last entry of the metadata is the sha256 of the bytes before it.
    """
    from leanres.ship.onnx_int8 import quantized

    with _silent():
        proto = _float_graph(content.classifier)
        if content.calibration is not None:
            proto = quantized(proto, content.calibration)
    for key, value in content.facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    written = proto.SerializeToString()
    write_bytes(path, written + _seal(written))


def _float_graph(classifier: ImageClassifier) -> Any:
    """The ModelProto from uint8 images, any number of them, to probabilities."""
    preprocess = classifier.preprocess
    shape = (2, preprocess.channels, preprocess.size, preprocess.size)
    program = torch.onnx.export(
        nn.Sequential(classifier, nn.Softmax(1)).eval(),
        (torch.zeros(shape, dtype=torch.uint8),),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _seal(written: bytes) -> bytes:
    """A metadata entry with the sha256 of a ModelProto's bytes: appended to them it is merged."""
    import onnx

    seal = onnx.ModelProto()
    entry = seal.metadata_props.add()
    entry.key, entry.value = "sha256", hashlib.sha256(written).hexdigest()
    return bytes(seal.SerializeToString())


def _read(path: Path) -> bytes:
    """The content of a file that `write` wrote. CheckpointError for any other."""
    try:
        with open_data(path, MAX_BYTES) as file:
            content = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    size = len(_seal(b""))
    if content[-size:] != _seal(content[:-size]):
        raise CheckpointError(
            f"{path} was not written by leanres, or was changed since: its sha256 is missing or"
            " wrong; export it again"
        )
    return content


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporter's and the quantiser's warnings of what these networks do not use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def facts(path: Path) -> dict[str, str]:
    """The metadata of a file that `write` wrote. CheckpointError for any other."""
    import onnx

    proto = onnx.load_model_from_string(_read(path))
    return {entry.key: entry.value for entry in proto.metadata_props}


def load(path: Path) -> Answer:
    """A session of ONNX Runtime on one thread: uint8 (N, C, size, size) -> float32 (N, K)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors: they are raised too
    # Of the bytes that were checked: the file cannot name others beside it.
    session = onnxruntime.InferenceSession(_read(path), options, ["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        (probs,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(probs)

    return answer
