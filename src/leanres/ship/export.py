"""export: write a trained network as one file of a TARGET, checked on real images before use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leanres.errors import UserError
from leanres.registry import Table
from leanres.runs.weights import load_classifier, weights_file
from leanres.ship.onnx import ONNX
from leanres.ship.safetensors import SAFETENSORS, classify
from leanres.ship.target import Target

CHECKED_IMAGES = 1000  # that the command line checks an export on
DRIFT = 0.02  # most that a probability may change; float16 weights change it by about 0.001

# Suffix of the file -> target. To add one, write its file and its entry here.
TARGETS: Table[Target] = Table("suffix", {".safetensors": SAFETENSORS, ".onnx": ONNX})


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
    """The file would give other probabilities than the run, because its weights are rounded."""


def export(target: Path | str, out: Path | str, images: Tensor, full: bool = False) -> Exported:
    """Write the network of `target` (run folder or weights file) to `out`, and check it.

    The suffix of `out` names the target: `.safetensors` (float16, or float32 with `full`) or
    `.onnx` (takes uint8 images, gives probabilities). images: uint8 (N, 3, size, size), real ones.
    The file is written beside `out`, read back, and replaces `out` only if it gives the network's
    probabilities on them; otherwise DriftError gives the largest difference. UserError for another
    suffix, images of another size, or a package that is not installed.
    """
    out = Path(out)
    kind = TARGETS[out.suffix]
    kind.check_installed()
    classifier, config = load_classifier(weights_file(target))
    size = classifier.preprocess.size
    if images.shape[1:] != (3, size, size):
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(f"images of {shape}: the network takes 3x{size}x{size}")
    expected = classify(classifier, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    unchecked = out.with_name(f".{out.name}")
    try:
        kind.write(unchecked, classifier, config, full)
        answer = kind.probabilities(unchecked, images)
        drift = float((answer - expected).abs().max())
        if not drift < DRIFT:
            advice = ": --full keeps float32" if kind.rounds and not full else ""
            raise DriftError(
                f"{out} would be off by {drift:.3g} in a probability: not written{advice}"
            )
        unchecked.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    agreement = float((answer.argmax(1) == expected.argmax(1)).double().mean())
    return Exported(out, out.stat().st_size, len(images), agreement, drift)
