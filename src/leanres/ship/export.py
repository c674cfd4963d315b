"""Export: one file to ship, with its preprocessing, checked on real images before it is kept.

`.safetensors` goes back into leanres, `.onnx` into anything that runs ONNX.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.io import write_bytes
from leanres.metrics.inference import predict_logits
from leanres.models.preprocess import ImageClassifier, Normalize, Preprocess
from leanres.models.zoo import config_to_dict
from leanres.registry import Table
from leanres.runs.weights import load_weights, save_weights, weights_file
from leanres.version import __version__

IMAGES = 1000  # that an export is checked on
DRIFT = 0.02  # most that a probability may move; float16 weights move it by some 0.001


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    `agreement` is the share of the checked images that keep their class, `drift` the largest
    change of a probability.
    """

    path: Path
    bytes: int
    images: int
    agreement: float
    drift: float


class DriftError(UserError):
    """The file would give other probabilities than the run: rounded, it is another network."""


def export(target: Path, out: Path, images: Tensor, full: bool = False) -> Exported:
    """Write the network of `target` (run folder or weights file) to `out`, and check it.

    The suffix of `out` says as what: `.safetensors` (float16, or float32 with `full`) or `.onnx`
    (takes uint8 images, gives probabilities). images: uint8 (N, 3, size, size), real ones: the
    file is read back and must give their probabilities, else `out` is left as it was and
    DriftError says how far off it is. UserError for another suffix, or where the ONNX packages
    are missing.
    """
    write = FORMATS[out.suffix]
    model, config, preprocess = load_weights(weights_file(target))
    size = preprocess.size
    if images.shape[1:] != (3, size, size):
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(f"images of {shape}: the network takes 3x{size}x{size}")
    expected = _probabilities(model, preprocess, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}")  # what is at `out` stays until this one is known good
    write(fresh, model, config, preprocess, full)
    probs = _READERS[out.suffix](fresh, images)
    drift = float((probs - expected).abs().max())
    if not drift < DRIFT:
        fresh.unlink()
        advice = ": --full keeps float32" if out.suffix == ".safetensors" and not full else ""
        raise DriftError(f"{out} would be off by {drift:.3g} in a probability: not written{advice}")
    try:
        fresh.replace(out)
    except OSError as error:
        fresh.unlink()
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    agreement = float((probs.argmax(1) == expected.argmax(1)).double().mean())
    return Exported(out, out.stat().st_size, len(images), agreement, drift)


def _probabilities(model: nn.Module, preprocess: Preprocess, images: Tensor) -> Tensor:
    normalize = Normalize(preprocess.mean, preprocess.std)
    return predict_logits(model, images, normalize=normalize).softmax(1)


def _write_weights(
    out: Path, model: nn.Module, config: Any, preprocess: Preprocess, full: bool
) -> None:
    save_weights(out, model, config, preprocess, half=not full)


def _read_weights(path: Path, images: Tensor) -> Tensor:
    model, _, preprocess = load_weights(path)
    return _probabilities(model, preprocess, images)


def _write_onnx(
    out: Path, model: nn.Module, config: Any, preprocess: Preprocess, full: bool
) -> None:
    del full  # always float32: less is the runtime's own affair
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'leanres[export]'")
    example = torch.zeros(2, 3, preprocess.size, preprocess.size, dtype=torch.uint8)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of packages that these networks do not use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                nn.Sequential(ImageClassifier(model, preprocess), nn.Softmax(1)).eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("n")}},
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    proto = program.model_proto
    about = {
        "leanres": __version__,
        "model": json.dumps(config_to_dict(config)),
        "classes": json.dumps(preprocess.classes),
        "preprocess": json.dumps(asdict(preprocess)),
    }
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    write_bytes(out, proto.SerializeToString())


def _read_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(probabilities)


FORMATS: Table[Callable[[Path, nn.Module, Any, Preprocess, bool], None]] = Table(
    "suffix", {".safetensors": _write_weights, ".onnx": _write_onnx}
)
_READERS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    ".safetensors": _read_weights,
    ".onnx": _read_onnx,
}
