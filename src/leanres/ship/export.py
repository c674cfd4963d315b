"""Export: write a trained network as a file of one of TARGETS, checked on real images."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leanres.errors import UserError
from leanres.io import make_folder
from leanres.models.preprocess import ImageClassifier, check_fit
from leanres.registry import Table
from leanres.runs.weights import load_classifier, weights_file
from leanres.ship import onnx, safetensors

CHECKED_IMAGES = 1000  # that the command line checks an export on
DRIFT = 0.02  # most that a probability may change; float16 weights change it by about 0.001
# Of many classes every probability may be below DRIFT: then these two decide. Measured in float16
# on the four shipped networks, and on five untrained ones of 1,000 classes: probabilities change by
# 1.2 % of the largest at most, and all images but ties of 0.03 % keep their class.
RELATIVE_DRIFT = 0.05  # most that a probability may change, as a share of the image's largest
KEPT = 0.98  # of the images that are no tie, the least share that keep their class
_TIE = 0.001  # relative difference of the two largest probabilities


@dataclass(frozen=True)
class Target:
    """How a file is written, and how it answers when it is read back.

    `write(path, classifier, config, full)` writes the network and its preprocessing; with `full`
    as float32 even if the target rounds. `probabilities(path, images)` runs the file as its users
    do: uint8 (N, C, size, size) -> float32 (N, K).
    """

    write: Callable[[Path, ImageClassifier, Any, bool], None]
    probabilities: Callable[[Path, Tensor], Tensor]
    rounds: bool = False  # weights are stored in fewer bits, unless `full` is given
    extra: str = ""  # the extra of `pip install 'leanres[...]'` that installs `packages`
    packages: tuple[str, ...] = ()


TARGETS: Table[Target] = Table(
    "export target",
    {
        ".safetensors": Target(safetensors.write, safetensors.probabilities, rounds=True),
        ".onnx": Target(
            onnx.write,
            onnx.probabilities,
            extra="export",
            packages=("onnx", "onnxscript", "onnxruntime"),
        ),
    },
)


def target_of(out: Path) -> Target:
    """The target that a suffix names. UserError for another one, or a package that is missing."""
    suffix = out.suffix.lower()
    if suffix not in TARGETS:
        raise UserError(f"{out}: give a file that ends in {' or '.join(TARGETS)}")
    target = TARGETS[suffix]
    for package in target.packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'leanres[{target.extra}]'")
    return target


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    `agreement` is the share of the checked images that keep their class, `drift` the largest
    change of a probability; network and file both computed in `precision`, on the CPU.
    """

    path: Path
    bytes: int
    images: int
    agreement: float
    drift: float
    precision: str = "float32"


class DriftError(UserError):
    """The file would give other probabilities than the run, because its weights are rounded."""


def export(target: Path | str, out: Path | str, images: Tensor, full: bool = False) -> Exported:
    """Write the network of `target` (run folder or weights file) to `out`, and check it.

    The suffix of `out` names the target: `.safetensors` (float16, or float32 with `full`) or
    `.onnx` (takes uint8 images, gives probabilities). images: uint8 (N, C, size, size), real ones.
    The file is written beside `out`, read back, and replaces `out` only if it gives the network's
    probabilities and classes on them; otherwise DriftError says how it differs. UserError for
    another suffix, images of another size, or a package that is not installed.
    """
    out = Path(out)
    kind = target_of(out)
    classifier, config = load_classifier(weights_file(target))
    check_fit(images, classifier.preprocess)
    expected = safetensors.classify(classifier, images)
    make_folder(out.parent)
    unchecked = out.with_name(f".{secrets.token_hex(8)}.{out.name}")
    try:
        kind.write(unchecked, classifier, config, full)
        answer = kind.probabilities(unchecked, images)
        if problem := _difference(expected, answer):
            advice = "; --full keeps float32 weights" if kind.rounds and not full else ""
            raise DriftError(f"{out} was not written: {problem}{advice}")
        unchecked.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    except UserError as error:  # of the file beside it, whose name says nothing to the user
        raise type(error)(str(error).replace(str(unchecked), str(out))) from None
    finally:
        unchecked.unlink(missing_ok=True)
    drift = float((answer - expected).abs().max())
    agreement = float((answer.argmax(1) == expected.argmax(1)).double().mean())
    return Exported(out, out.stat().st_size, len(images), agreement, drift)


def _difference(expected: Tensor, answer: Tensor) -> str:
    """How a file's probabilities (N, K) differ from the network's; empty where they may."""
    drift = (answer - expected).abs().amax(1)
    first, second = expected.topk(min(2, expected.shape[1])).values.T[[0, -1]]
    most, relative = float(drift.max()), float((drift / first).max())
    if not most < DRIFT:  # as NaN is not
        return f"it would change a probability by {most:.2g}, and at most {DRIFT} is accepted"
    if relative >= RELATIVE_DRIFT:
        return (
            f"it would change a probability by {100 * relative:.2g} % of the image's largest, and"
            f" at most {100 * RELATIVE_DRIFT:g} % is accepted"
        )
    kept = (answer.argmax(1) == expected.argmax(1))[first - second > _TIE * first]
    if len(kept) and (share := float(kept.double().mean())) < KEPT:
        return (
            f"{100 * share:.1f} % of {len(kept):,} images would keep their class, and at least"
            f" {100 * KEPT:g} % have to"
        )
    return ""
