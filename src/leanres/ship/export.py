"""Export: write a trained network as a file of one of TARGETS, checked on real images."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from leanres.data.split import Split
from leanres.errors import UserError
from leanres.io import make_folder
from leanres.metrics.calibration import fit_temperature
from leanres.metrics.classification import ece
from leanres.models.preprocess import ImageClassifier, check_fit
from leanres.registry import Table
from leanres.runs.weights import load_classifier, weights_file
from leanres.ship import litert, onnx, safetensors
from leanres.ship.check import Answer, Check, Images, check
from leanres.ship.facts import (
    Answers,
    Content,
    Known,
    check_facts,
    describe,
    digest,
    origin_of,
    read,
)

CHECKED_IMAGES = 1000  # that the command line checks an export on
CALIBRATION_IMAGES = 500  # training images that set the ranges of int8 activations


@dataclass(frozen=True)
class Target:
    """How a file is written, and how it answers when it is read back.

    `write(path, content)` writes the network, its preprocessing and its facts. `load(path)` gives
    the file as its users run it, on one thread: uint8 (N, C, size, size) -> probabilities (N, K).
    `facts(path)` reads the facts again; both refuse a file that was changed. A target that knows
    `int8` computes in it where the content has calibration images.
    """

    write: Callable[[Path, Content], None]
    load: Callable[[Path], Answer]
    facts: Callable[[Path], dict[str, str]]
    runtime: str  # what `load` runs the file with
    rounds: bool = False  # weights are stored in fewer bits, unless they are to be `full`
    int8: bool = False
    extra: str = ""  # the extra of `pip install 'leanres[...]'` that installs `packages`
    packages: tuple[str, ...] = ()


TARGETS: Table[Target] = Table(
    "export target",
    {
        ".safetensors": Target(
            safetensors.write, safetensors.load, safetensors.facts, "PyTorch", rounds=True
        ),
        ".onnx": Target(
            onnx.write,
            onnx.load,
            onnx.facts,
            "ONNX Runtime",
            int8=True,
            extra="export",
            packages=("onnx", "onnxscript", "onnxruntime"),
        ),
        ".tflite": Target(
            litert.write,
            litert.load,
            litert.facts,
            "LiteRT",
            int8=True,
            extra="litert",
            packages=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
        ),
    },
)


def target_of(out: Path, int8: bool = False) -> Target:
    """The target that a suffix names. UserError for another one, or a package that is missing."""
    suffix = out.suffix.lower()
    if suffix not in TARGETS:
        raise UserError(f"{out}: give a file that ends in {' or '.join(TARGETS)}")
    target = TARGETS[suffix]
    if int8 and not target.int8:
        known = " or ".join(name for name, each in TARGETS.items() if each.int8)
        raise UserError(f"{out}: {suffix} has no int8; give a file that ends in {known}")
    for package in target.packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'leanres[{target.extra}]'")
    return target


@dataclass(frozen=True, kw_only=True)
class Exported(Check):
    """A file that was written and checked.

    Its probabilities are those of the network's logits divided by `temperature`. `ece_before` and
    `ece` are the network's calibration error on the checked images without it and with it.
    """

    temperature: float = 1.0
    ece_before: float | None = None
    ece: float | None = None


class DriftError(UserError):
    """The file would give other probabilities than the run, because its weights are rounded."""


def export(
    target: Path | str,
    out: Path | str,
    images: Tensor,
    full: bool = False,
    *,
    labels: Tensor | None = None,
    data: str = "",
    calibration: Tensor | None = None,
    val: Split | None = None,
) -> Exported:
    """Write the network of `target` (run folder or weights file) to `out`, and check it.

    The suffix of `out` names the target: `.safetensors` (float16, or float32 with `full`) or
    `.onnx` (takes uint8 images, gives probabilities); with `calibration`, some hundred training
    images without augmentation, it computes in int8. images: uint8 (N, C, size, size), real ones of
    the data set named `data`, with their labels (N,) if known. val: images that a temperature is
    fitted on, unless the weights have one.

    The file is written beside `out`, read back, and replaces `out` only if it gives the network's
    probabilities and classes on them (in int8: its classes and accuracy); otherwise DriftError says
    how it differs. UserError for another suffix, images of another size, or a package that is not
    installed.
    """
    target, out = Path(target), Path(out)
    is_int8 = calibration is not None
    kind = target_of(out, is_int8)
    classifier, config = load_classifier(weights_file(target))
    check_fit(images, classifier.preprocess)
    logits, known = safetensors.classify(classifier, images), classifier.temperature
    own = logits * known  # the network's, before any calibration
    if val is not None and known == 1:
        classifier.temperature = _temperature(classifier, val)
    probs = classifier.calibrated(own).softmax(1)
    expected = Answers.of(probs)
    checked_on = check_facts(expected, images, labels, data)
    facts = describe(classifier, config, origin_of(target), checked_on, is_int8)
    content = Content(classifier, config, facts, full, calibration)
    pixels = Images(images, labels, expected, classifier.temperature)
    done = _write_checked(kind, out, content, pixels)
    told: dict[str, Any] = {"temperature": classifier.temperature}
    if labels is not None:
        told |= {"ece_before": ece(own.softmax(1), labels), "ece": ece(probs, labels)}
    return Exported(**vars(done), **told)


def _temperature(classifier: ImageClassifier, val: Split) -> float:
    """The temperature that calibrates the network on val; 1 where all of it is right.

    Then every lower one would be better still.
    """
    logits = safetensors.classify(classifier, val.images)
    if (logits.argmax(1) == val.labels).all():
        return 1.0
    return round(fit_temperature(logits, val.labels), 4)


def _write_checked(kind: Target, out: Path, content: Content, images: Images) -> Check:
    """Write beside `out`, check, and replace `out`. DriftError, and nothing written, otherwise."""
    make_folder(out.parent)
    unchecked = out.with_name(f".{secrets.token_hex(8)}.{out.name}")
    try:
        kind.write(unchecked, content)
        is_int8 = content.calibration is not None
        done, problem = check(unchecked, kind.load, kind.runtime, images, is_int8)
        if problem:
            rounds = kind.rounds and not content.full
            advice = "; --full keeps float32 weights" if rounds and not is_int8 else ""
            raise DriftError(f"{out} was not written: {problem}{advice}")
        unchecked.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    except UserError as error:  # of the file beside it, whose name says nothing to the user
        raise type(error)(str(error).replace(str(unchecked), str(out))) from None
    finally:
        unchecked.unlink(missing_ok=True)
    return replace(done, path=out)


def known_facts(path: Path) -> Known:
    """What an exported file says of itself. Raises as `verify`."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of `leanres export`")
    return read(target_of(path).facts(path), path)


def verify(path: Path | str, split: Split) -> Check:
    """Check a file of `export` again, from the file alone, on the first images of `split`.

    Where these are the images that it was checked on, it has to answer them as the network did;
    on others its accuracy is measured. UserError where it does not, or for images of another size
    or of other classes; CheckpointError for a file that `export` did not write or that was changed.
    """
    path = Path(path)
    known, kind = known_facts(path), target_of(path)
    check_fit(split.images, known.preprocess)
    if split.classes != known.preprocess.classes:
        own = ", ".join(known.preprocess.classes)
        raise UserError(
            f"the data has classes {', '.join(split.classes)}, {path} {own}: give its data"
        )
    n = min(len(split), known.checked["n"])
    pixels, labels = split.images[:n], split.labels[:n]
    same = digest(pixels) == known.checked["images"]
    images = Images(pixels, labels, known.answers if same else None, known.temperature)
    done, problem = check(path, kind.load, kind.runtime, images, known.is_int8)
    if problem:
        raise UserError(f"{path} does not answer as it did: {problem}")
    return done
