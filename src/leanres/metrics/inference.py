"""Logits of a network over uint8 images, with or without test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.registry import Table

Views = Iterator[tuple[Tensor, float]]  # (N, C, H, W) like the batch, and its share of the mean


def plain(images: Tensor) -> Views:
    """The batch (N, C, H, W) itself."""
    yield images, 1.0


def flip(images: Tensor) -> Views:
    """The batch (N, C, H, W) and its left-right mirror, half each."""
    yield from _pair(images, 1.0)


def flip_shift(images: Tensor) -> Views:
    """The mirror pair, and those of the batch shifted by 1 px to either corner: 1/2, 1/4, 1/4.

    As the speed records count it (Jordan 2024, arXiv:2404.00498, sec. 3.5): reflect-pad by 1,
    crop at (0, 0) and at (2, 2). Images must be at least 2 px wide and high.
    """
    yield from _pair(images, 0.5)
    yield from shifts(images)


def shifts(images: Tensor) -> Views:
    """What `flip_shift` has beside the mirror pair: 1/4, 1/4."""
    h, w = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    for corner in (0, 2):
        yield from _pair(padded[:, :, corner : corner + h, corner : corner + w], 0.25)


def _pair(images: Tensor, weight: float) -> Views:
    yield images, weight / 2
    yield images.flip(3), weight / 2


class TTAPolicy(NamedTuple):
    """A test-time augmentation: the views of every image, the first of them the image itself.

    `more`, if any, are views that only unsure images get, those whose two likeliest classes are
    less than UNSURE apart in probability by the first views; what `more` weighs, these lose.
    """

    views: Callable[[Tensor], Views]
    more: Callable[[Tensor], Views] | None = None


UNSURE = 0.5
TTA: Table[TTAPolicy] = Table(
    "test-time augmentation",
    {
        "none": TTAPolicy(plain),
        "flip": TTAPolicy(flip),
        "flip-shift": TTAPolicy(flip_shift),
        "flip-shift-unsure": TTAPolicy(flip, shifts),
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
    """Logits (N, K) float32 on the model's device of `images` (N, C, H, W) uint8 on any device.

    `batch_size` is by default 500 images of 32 px, or fewer larger ones of as many pixels.
    `normalize` takes a uint8 batch on the model's device and gives the floats the model eats;
    `autocast` is entered once, around everything. The model answers in eval mode and is left in
    the mode, module by module, that it came in. An unknown `tta`, no image or a batch size below
    1 is a `UserError`; anything but uint8 of four dimensions a `ValueError`.
    """
    return predict_both(
        model,
        images,
        normalize=normalize,
        tta=tta,
        batch_size=batch_size,
        autocast=autocast,
    )[1]


def predict_both(
    model: nn.Module,
    images: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    tta: str,
    batch_size: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> tuple[Tensor, Tensor]:
    """(logits of the images themselves, under `tta`): no view is computed twice.

    Arguments as of `predict_logits`.
    """
    policy = TTA[tta]
    _check(images, batch_size)
    batch_size = batch_size or max(1, min(500, 500 * 32**2 // images[0, 0].numel()))
    device = _device(model)
    with evaluating(model), torch.inference_mode(), autocast or nullcontext():
        parts = [
            _both(model, policy, normalize(chunk.to(device)))
            for chunk in torch.split(images, batch_size)
        ]
    # joined outside inference mode, the results are ordinary tensors that autograd accepts
    itself, mean = (torch.cat(column) for column in zip(*parts, strict=True))
    return itself, mean


def _both(model: nn.Module, policy: TTAPolicy, images: Tensor) -> tuple[Tensor, Tensor]:
    each = list(_weighted(model, policy.views(images)))
    itself, mean = each[0][0], _sum(each)
    if policy.more is not None:
        best = mean.softmax(1).topk(min(2, mean.shape[1])).values
        unsure = best[:, 0] - best[:, -1] < UNSURE
        if unsure.any():
            others = list(_weighted(model, policy.more(images[unsure])))
            left = 1 - sum(weight for _, weight in others)
            mean[unsure] = left * mean[unsure] + _sum(others)
    return itself, mean


def _weighted(model: nn.Module, views: Views) -> Iterator[tuple[Tensor, float]]:
    for view, weight in views:
        yield model(view.contiguous(memory_format=torch.channels_last)).float(), weight


def _sum(each: list[tuple[Tensor, float]]) -> Tensor:
    total = each[0][0] * each[0][1]
    for logits, weight in each[1:]:
        total += logits * weight
    return total


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within, every module's own mode after: part of a model may be frozen in eval."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _device(model: nn.Module) -> torch.device:
    """Where the model's first weight (or buffer) lives; the CPU for a model without any."""
    weights = chain(model.parameters(), model.buffers())
    return next((weight.device for weight in weights), torch.device("cpu"))


def _check(images: Tensor, batch_size: int | None) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        form = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
        raise ValueError(f"images {form}: give uint8 of shape (N, C, H, W), not yet normalised")
    if not len(images):
        raise UserError("no images: give at least one to predict")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"a batch size of {batch_size}: give 1 or more")
