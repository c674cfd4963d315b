"""Inference: logits of a network over uint8 images, with or without test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.metrics.classification import shape_and_dtype
from leanres.registry import Table

Views = Iterator[tuple[Tensor, float]]  # a view (N, C, H, W) of the batch, its weight in the mean


def identity_view(images: Tensor) -> Views:
    """Only the batch (N, C, H, W) itself."""
    yield images, 1.0


def mirrored_views(images: Tensor, weight: float = 1.0) -> Views:
    """The batch (N, C, H, W) and its left-right mirror image, each with half of `weight`."""
    yield images, weight / 2
    yield images.flip(3), weight / 2


def mirrored_and_shifted_views(images: Tensor) -> Views:
    """The mirrored pair of the batch (weight 1/2) and the four `shifted_views` (weight 1/2)."""
    yield from mirrored_views(images, 0.5)
    yield from shifted_views(images)


def shifted_views(images: Tensor) -> Views:
    """Mirrored pairs of the batch shifted by 1 px towards two opposite corners, weight 1/4 each.

    As in the speed records (Jordan 2024, arXiv:2404.00498, sec. 3.5): reflect-pad by 1 px, crop at
    (0, 0) and at (2, 2). Images must be at least 2 px wide and high.
    """
    h, w = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    for corner in (0, 2):
        yield from mirrored_views(padded[:, :, corner : corner + h, corner : corner + w], 0.25)


class TTAPolicy(NamedTuple):
    """A test-time augmentation: logits are averaged over `views`, the first being the image itself.

    `extra_views` are computed only for uncertain images: those whose two most likely classes differ
    by less than UNCERTAIN_MARGIN in probability after `views`. The weights of `views` are scaled
    down to make room for those of `extra_views`.
    """

    views: Callable[[Tensor], Views]
    extra_views: Callable[[Tensor], Views] | None = None


UNCERTAIN_MARGIN = 0.5
TTA: Table[TTAPolicy] = Table(
    "test-time augmentation",
    {
        "none": TTAPolicy(identity_view),
        "flip": TTAPolicy(mirrored_views),
        "flip-shift": TTAPolicy(mirrored_and_shifted_views),
        "flip-shift-unsure": TTAPolicy(mirrored_views, shifted_views),
    },
)


def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    tta: str = "none",
    batch_size: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Logits (N, K) float32 on the model's device for `images` (N, C, H, W) uint8 on any device.

    `normalize` maps a uint8 batch on the model's device to the floats that the model takes. The
    default `batch_size` is 500 images of 32 px, or as many larger ones as have the same number of
    pixels. `autocast` is entered once, around all batches. The model runs in eval mode; afterwards
    each module is back in its own mode. Raises UserError for an unknown `tta`, no images or a batch
    size below 1, and ValueError for anything but a 4-dimensional uint8 tensor.
    """
    _, augmented = predict_both(
        model, images, normalize=normalize, tta=tta, batch_size=batch_size, autocast=autocast
    )
    return augmented


def predict_both(
    model: nn.Module,
    images: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    tta: str,
    batch_size: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits without and with test-time augmentation; no view is computed twice.

    Takes the arguments of `predict_logits` and returns two results like it: (plain, augmented).
    """
    policy = TTA[tta]
    _check_images(images, batch_size)
    batch_size = batch_size or default_batch_size(images)
    device = _device(model)
    with evaluating(model), torch.inference_mode(), autocast or nullcontext():
        parts = [
            _predict_batch(model, policy, normalize(chunk.to(device)))
            for chunk in torch.split(images, batch_size)
        ]
    # Concatenated outside inference mode, the results are ordinary tensors that autograd accepts.
    plain, augmented = (torch.cat(column) for column in zip(*parts, strict=True))
    return plain, augmented


def default_batch_size(images: Tensor) -> int:
    """500 images of 32 px, or as many larger ones as have the same number of pixels."""
    return max(1, min(500, 500 * 32**2 // images[0, 0].numel()))


def _predict_batch(model: nn.Module, policy: TTAPolicy, images: Tensor) -> tuple[Tensor, Tensor]:
    outputs = list(_outputs(model, policy.views(images)))
    plain, mean = outputs[0][0], _weighted_sum(outputs)
    if policy.extra_views is not None:
        top = mean.softmax(1).topk(min(2, mean.shape[1])).values
        uncertain = top[:, 0] - top[:, -1] < UNCERTAIN_MARGIN
        if uncertain.any():
            extra = list(_outputs(model, policy.extra_views(images[uncertain])))
            rest = 1 - sum(weight for _, weight in extra)
            mean[uncertain] = rest * mean[uncertain] + _weighted_sum(extra)
    return plain, mean


def _outputs(model: nn.Module, views: Views) -> Iterator[tuple[Tensor, float]]:
    for view, weight in views:
        yield model(view.contiguous(memory_format=memory_format(view.device))).float(), weight


def memory_format(device: torch.device | str) -> torch.memory_format:
    """How images and feature maps lie in memory on a device: channels last where that works.

    On Apple GPUs PyTorch's batch norm fails with it (github.com/pytorch/pytorch/pull/188371).
    """
    on_mps = torch.device(device).type == "mps"
    return torch.contiguous_format if on_mps else torch.channels_last


def _weighted_sum(outputs: list[tuple[Tensor, float]]) -> Tensor:
    total = outputs[0][0] * outputs[0][1]
    for logits, weight in outputs[1:]:
        total += logits * weight
    return total


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, then restore each module's own: some may be frozen in eval."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    weights = chain(model.parameters(), model.buffers())
    return next((weight.device for weight in weights), torch.device("cpu"))


def _check_images(images: Tensor, batch_size: int | None) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        came = f"images {shape_and_dtype(images)}"
        raise ValueError(f"{came}: give uint8 of shape (N, C, H, W), not yet normalised")
    if not len(images):
        raise UserError("no images: give at least one to predict")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"a batch size of {batch_size}: give 1 or more")
