"""Predictor: a run folder or a weights file, ready to evaluate and to classify images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanres.augment.registry import FLIPS
from leanres.data.greys import Greys
from leanres.data.image_files import Unreadable
from leanres.data.split import Split
from leanres.data.unlabelled import Images, Unlabelled, UnlabelledImage, given
from leanres.errors import UserError
from leanres.metrics.classification import accuracy, measure
from leanres.metrics.inference import predict_both
from leanres.models.config import ModelConfig
from leanres.models.cost import count_params
from leanres.models.preprocess import ImageClassifier, Normalize, Preprocess, check_fit
from leanres.runs.run import device_of
from leanres.runs.run_json import read_info
from leanres.runs.weights import load_classifier, weights_file
from leanres.training.device import Device, detect
from leanres.training.distributed import ALONE, World


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one image: its most likely classes, likeliest first."""

    path: Path  # of the image file, or of the batch
    classes: tuple[str, ...]
    probs: tuple[float, ...]
    id: str  # the path relative to the folder given, or what a batch calls the image
    greys: Greys | None = None  # the range of grey values of more than 8 bits, of an image file


@dataclass(frozen=True)
class Predictor:
    """A trained network with its preprocessing, on a device. Make it with `load_predictor`."""

    classifier: ImageClassifier
    config: ModelConfig
    device: Device
    tta: str = "none"  # the test-time augmentation that "auto" means

    @property
    def model(self) -> nn.Module:
        """The network itself: normalised floats in, logits out."""
        return self.classifier.model

    @property
    def preprocess(self) -> Preprocess:
        """Size, normalisation and class names."""
        return self.classifier.preprocess

    @property
    def normalize(self) -> Normalize:
        """uint8 images -> the floats that the network takes."""
        return self.classifier.normalize

    @cached_property
    def _accelerated(self) -> nn.Module:
        return self.device.accelerate(self.model)

    def logits(self, images: Tensor, tta: str = "none") -> Tensor:
        """uint8 (N, C, size, size) -> logits (N, K) float32 on the CPU."""
        return self.logits_both(images, tta)[1]

    def logits_both(self, images: Tensor, tta: str) -> tuple[Tensor, Tensor]:
        """As `logits`, without and with test-time augmentation."""
        check_fit(images, self.preprocess)
        plain, augmented = predict_both(
            self._accelerated,
            images,
            normalize=self.normalize,
            tta=tta,
            autocast=self.device.autocast(),
        )
        calibrated = self.classifier.calibrated
        return calibrated(plain.cpu()), calibrated(augmented.cpu())

    def evaluate(self, split: Split, tta: str = "auto") -> dict[str, Any]:
        """Accuracy, NLL, ECE, per-class accuracy and confusion without augmentation.

        Beside them `accuracy_tta` under `tta`, and `params`. "auto" follows the run's recipe, as
        `tta_of` says; it is none for a weights file, which does not know its recipe.
        """
        self.check_classes(split)
        return self.measure(split, tta)[0] | {"params": count_params(self.config)}

    def check_classes(self, split: Split) -> None:
        """UserError for images of other classes."""
        if split.classes != self.preprocess.classes:
            raise UserError(
                f"the data has classes {', '.join(split.classes)}, the network"
                f" {', '.join(self.preprocess.classes)}: give the data that it was trained for"
            )

    def measure(
        self, split: Split, tta: str, world: World = ALONE
    ) -> tuple[dict[str, Any], Tensor]:
        """The figures of an evaluation, accuracy with `tta` too; the logits without it."""
        tta = self.tta if tta == "auto" else tta
        both = world.predict(
            lambda images: torch.stack(self.logits_both(images, tta), 1),
            split.images,
            2,
            len(split.classes),
        )
        plain, augmented = both.unbind(1)
        return figures(plain, augmented, split.labels.cpu(), tta), plain

    def predict(
        self, images: Unlabelled | Images, tta: str = "none", top: int | None = None
    ) -> Iterator[Prediction | Unreadable]:
        """The `top` classes (3, or all of fewer) of each image, in order, or why it cannot be read.

        images: image files, folders of them and batches, as `find_unlabelled` takes them, one or
        several; or pictures of Pillow's, or an array, whose IDs are
        positions from 0. Some hundred files are in memory at a time.
        """
        known = self.preprocess
        top = min(3, len(known.classes)) if top is None else top
        if not 1 <= top <= len(known.classes):
            raise UserError(f"top {top}: give 1 to {len(known.classes)}")
        found = images if isinstance(images, Unlabelled) else given(images)
        for chunk in found.read(known.size, known.channels, known.whites):
            yield from self._predict_chunk(chunk, self.tta if tta == "auto" else tta, top)

    def _predict_chunk(
        self, chunk: list[UnlabelledImage], tta: str, top: int
    ) -> Iterator[Prediction | Unreadable]:
        arrays = [image.pixels for image in chunk if not isinstance(image.pixels, str)]
        probs: Iterator[Tensor] = iter(())
        if arrays:
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            probs = iter(self.logits(images, tta).softmax(1))
        for image in chunk:
            if isinstance(image.pixels, str):
                yield Unreadable(image.path, image.pixels)
                continue
            best, indices = next(probs).topk(top)
            names = tuple(self.preprocess.classes[i] for i in indices.tolist())
            yield Prediction(image.path, names, tuple(best.tolist()), image.id, image.greys)


def figures(plain: Tensor, augmented: Tensor, labels: Tensor, tta: str) -> dict[str, Any]:
    """The figures of logits (N, K), with the accuracy of those that `tta` augmented. JSON-able."""
    return measure(plain, labels) | {"accuracy_tta": accuracy(augmented, labels), "tta": tta}


def load_predictor(path: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
    """The network of a run folder (its model.safetensors) or of a weights file, in eval mode.

    precision: "auto" is the run's own on the kind of device that it had, or the one that a weights
    file names, so that figures are measured again as they were. UserError for a path that is
    neither, CheckpointError for a damaged file.
    """
    classifier, config = load_classifier(weights_file(path))
    info = read_info(Path(path)) if Path(path).is_dir() else None
    if precision == "auto":
        precision = (classifier if info is None else device_of(info, device)).precision
    found = detect(device, precision, compiled=False)
    placed: ImageClassifier = found.place(classifier)  # type: ignore[assignment]
    tta = tta_of(info["recipe"]["augment"]) if info is not None else "none"
    return Predictor(placed, config, found, tta)


def tta_of(augment: Sequence[Sequence[Any]]) -> str:
    """The test-time augmentation that fits a recipe's `augment`: mirrored views where it flips.

    Without flips, mirrored images are foreign to the network: digits fell from 98.6 to 86.7 %.
    """
    return "flip-shift" if any(name in FLIPS for name, *_ in augment) else "none"
