"""A trained network that another one learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from leanres.data.split import Split
from leanres.errors import UserError
from leanres.metrics.inference import predict_logits
from leanres.runs.weights import load_weights, weights_file
from leanres.training.device import Engine, Normalize
from leanres.training.recipe import StepCounts


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from, and how it reads images."""

    model: nn.Module
    normalize: Normalize


def load_teacher(path: str, train: Split, engine: Engine) -> Teacher:
    """The network of a run folder or weights file, for images and classes like `train`'s."""
    try:
        model, _, preprocess = load_weights(weights_file(path))
    except UserError as error:
        raise UserError(f"teacher = {path!r}: {error}") from None
    if preprocess.classes != train.classes or preprocess.size != train.images.shape[-1]:
        raise UserError(
            f"teacher = {path!r} knows {', '.join(preprocess.classes)} in images of"
            f" {preprocess.size} px, the data has {', '.join(train.classes)} in images of"
            f" {train.images.shape[-1]} px: give one that was trained on this data"
        )
    normalize = Normalize(preprocess.mean, preprocess.std).to(engine.device)
    return Teacher(engine.place(model), normalize)


def teach(
    teacher: Teacher | None, images: Tensor, plan: StepCounts, engine: Engine
) -> Tensor | None:
    """The teacher's logits (N, K) for uint8 images as augmented, at full size; None without one.

    Teacher and student see the same views: Beyer et al. 2022, arXiv:2106.05237.
    """
    if teacher is None:
        return None
    return predict_logits(
        teacher.model,
        images,
        normalize=teacher.normalize,
        batch_size=math.ceil(plan.images_per_step / plan.recipe.accumulate),
        autocast=engine.autocast(),
    )
