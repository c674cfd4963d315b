"""Knowledge distillation: a trained network's logits for the images of a step."""

from __future__ import annotations

from torch import Tensor

from leanres.metrics.inference import predict_logits
from leanres.models.preprocess import ImageClassifier
from leanres.training.setup import Setup


def teacher_logits(
    teacher: ImageClassifier | None, images: Tensor, part_size: int, setup: Setup
) -> Tensor | None:
    """The teacher's logits (N, K) for uint8 images as augmented, at full size; None without one.

    Computed part by part, as the student's. Teacher and student see the same views: Beyer et al.
    2022, arXiv:2106.05237.
    """
    if teacher is None or not len(images):
        return None
    return predict_logits(
        teacher.model,
        images,
        normalize=teacher.normalize,
        batch_size=part_size,
        autocast=setup.device.autocast(),
    )
