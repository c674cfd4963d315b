"""Ship as .tflite: LiteRT on phones and boards; takes one uint8 image, gives its probabilities."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanres.io import MIB, CheckpointError, open_data, parse_json, write_bytes
from leanres.models.preprocess import ImageClassifier
from leanres.ship.check import Answer
from leanres.ship.facts import Content

MAX_BYTES = 2048 * MIB  # of a FlatBuffer
FACTS = "leanres.json"  # in the zip that TFLite files end in: "associated files"


class _Max(nn.Module):
    """AdaptiveMaxPool2d(1), which the converter does not know: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax((2, 3), keepdim=True)


def write(path: Path, content: Content) -> None:
    """Write a FlatBuffer of one image, followed by the facts; in int8 with `calibration`.

    The weights of a float file are float32, so `full` changes nothing.
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        model = _converted(content.classifier, content.calibration)
    write_bytes(path, model + _appendix(model, dict(content.facts)))


def _converted(classifier: ImageClassifier, calibration: Tensor | None) -> bytes:
    import litert_torch

    for name, module in list(classifier.named_modules()):
        if isinstance(module, nn.AdaptiveMaxPool2d):
            classifier.set_submodule(name, _Max())
    for parameter in classifier.parameters():
        parameter.data = parameter.data.contiguous()
    preprocess = classifier.preprocess
    shape = (1, preprocess.channels, preprocess.size, preprocess.size)
    network = nn.Sequential(classifier, nn.Softmax(1)).eval()
    example = (torch.zeros(shape, dtype=torch.uint8),)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "float.tflite"
        litert_torch.convert(network, example).export(str(out))
        return out.read_bytes() if calibration is None else _quantized(out, calibration)


def _quantized(path: Path, images: Tensor) -> bytes:
    """Weights and activations as int8: static, a scale per output channel, ranges of `images`."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    ((name, signature),) = Interpreter(str(path)).get_signature_list().items()
    made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    batches = [{signature["inputs"][0]: image[None].numpy()} for image in images]
    found = made.quantize(made.calibrate({name: batches}))
    return bytes(found.quantized_model)


def _appendix(model: bytes, facts: dict[str, str]) -> bytes:
    """A zip with the facts, and the sha256 of them and of the FlatBuffer before it."""
    text = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(model + text.encode()).hexdigest()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:  # not compressed: its bytes follow from the facts
        archive.writestr(zipfile.ZipInfo(FACTS), json.dumps({"sha256": digest, "facts": facts}))
    return zipped.getvalue()


def _read(path: Path) -> tuple[bytes, dict[str, str]]:
    """FlatBuffer and facts of a file that `write` wrote. CheckpointError for any other."""
    try:
        with open_data(path, MAX_BYTES) as file:
            content = file.read()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = archive.getinfo(FACTS)
            facts: Any = parse_json(archive.read(entry))["facts"]
        model = content[: entry.header_offset]
        if model + _appendix(model, facts) == content:
            return model, facts
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, NotImplementedError, EOFError):
        pass
    raise CheckpointError(
        f"{path} was not written by leanres, or was changed since: its sha256 is missing or wrong;"
        " export it again"
    )


def facts(path: Path) -> dict[str, str]:
    """The facts of a file that `write` wrote. CheckpointError for any other."""
    return _read(path)[1]


def load(path: Path) -> Answer:
    """LiteRT's interpreter on one thread: uint8 (N, C, size, size) -> float32 (N, K)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=_read(path)[0], num_threads=1)
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = out["quantization"]

    def one(image: Tensor) -> Any:
        interpreter.set_tensor(into["index"], image[None].numpy())
        interpreter.invoke()
        probs = interpreter.get_tensor(out["index"])[0].astype(np.float32)
        return (probs - zero) * scale if scale else probs

    return lambda images: torch.from_numpy(np.stack([one(image) for image in images]))
