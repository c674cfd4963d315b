"""Grad-CAM and Grad-CAM++ maps of any layer whose output has height and width."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from leanres.metrics.inference import evaluating, memory_format
from leanres.registry import Table

BATCH_SIZE = 100  # images whose activations and gradients are in memory at once


def gradcam_weights(maps: Tensor, grads: Tensor) -> Tensor:
    """Channel weights: the mean gradient of each channel. (N, C, h, w) twice -> (N, C).

    Selvaraju et al. 2017, arXiv:1610.02391, eq. 1.
    """
    return grads.mean((2, 3))


def gradcam_pp_weights(maps: Tensor, grads: Tensor) -> Tensor:
    """Channel weights: a weighted sum of positive gradients. (N, C, h, w) twice -> (N, C).

    Chattopadhay et al. 2018, arXiv:1710.11063, sec. 3, for the exponential of the class score. The
    factor exp(score) is left out because it only scales the whole map. Meant for maps after a ReLU:
    for negative activations the denominator of a weight can be close to 0.
    """
    squares = grads.square()
    denominator = 2 * squares + maps.sum((2, 3), keepdim=True) * squares * grads
    # Where a gradient is 0 the quotient is 0 / 0: such a position gets the weight 0.
    safe = torch.where(denominator == 0, 1.0, denominator)
    alphas = torch.where(denominator == 0, 0.0, squares / safe)
    return (alphas * grads.relu()).sum((2, 3))


METHODS: Table[Callable[[Tensor, Tensor], Tensor]] = Table(
    "Grad-CAM method", {"Grad-CAM": gradcam_weights, "Grad-CAM++": gradcam_pp_weights}
)


def map_layers(model: nn.Module, images: Tensor) -> Table[tuple[int, int]]:
    """Layers whose output is a map larger than 1x1, in execution order: name -> (height, width).

    `images` (N, C, H, W) are normalised; only the first one is used.
    """
    sizes: Table[tuple[int, int]] = Table("layer with maps", {})

    def record(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2:].numel() > 1:
            sizes[name] = (out.shape[2], out.shape[3])

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(
                    module.register_forward_hook(lambda _m, _i, out, name=name: record(name, out))
                )
        model(images[:1])
    return sizes


def usual_layers(sizes: dict[str, tuple[int, int]], count: int = 2) -> list[str]:
    """Default layers to explain: one for each of the last `count` map sizes of `map_layers`.

    Of the layers with one size it is the outermost, and of several outermost ones the last.
    """
    names = list(sizes)
    # Outermost first, so that the end of a stage wins over a convolution inside the next stage that
    # runs before its pooling layer.
    ranked = sorted(names, key=lambda name: (-name.count("."), names.index(name)))
    best = {sizes[name]: name for name in ranked}
    return sorted(best.values(), key=names.index)[-count:]


def explain(
    model: nn.Module, images: Tensor, layer: str, classes: Tensor, method: str = "Grad-CAM"
) -> Tensor:
    """How strongly each position of `layer` supports the class: maps (N, h, w) float32, >= 0.

    `images` (N, C, H, W) are normalised floats on the model's device, `classes` is (N,) int64. The
    maps are not scaled; `invalid_map_reasons` says which of them cannot be drawn. The model, its
    gradients and its hooks are left unchanged. Raises UserError for a layer without maps or an
    unknown method.
    """
    weighting = METHODS[method]
    images = images.contiguous(memory_format=memory_format(images.device))
    map_layers(model, images)[layer]  # an unknown name raises
    module = model.get_submodule(layer)
    tensors = (images, classes.to(images.device))
    chunks, targets = (torch.split(tensor, BATCH_SIZE) for tensor in tensors)
    with evaluating(model):
        pairs = zip(chunks, targets, strict=True)
        return torch.cat([_maps(model, module, *pair, weighting) for pair in pairs])


def _maps(
    model: nn.Module,
    module: nn.Module,
    images: Tensor,
    classes: Tensor,
    weighting: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    outputs: list[Tensor] = []

    def detach_output(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        # A new leaf: nothing before it is differentiated, and frozen weights do not matter.
        outputs.append(out.detach().requires_grad_())
        return outputs[-1].clone()  # the next layer may work in place

    with torch.enable_grad(), module.register_forward_hook(detach_output):
        logits = model(images)
    # In eval mode the score of an image depends on its own maps only, so the gradient of the sum
    # gives the gradient of each image.
    score = logits.gather(1, classes[:, None]).sum()
    (grads,) = torch.autograd.grad(score, outputs[-1])
    maps = outputs[-1].detach()
    return (weighting(maps, grads)[:, :, None, None] * maps).sum(1).relu().float()


def invalid_map_reasons(maps: Tensor) -> list[str]:
    """Why each map (N, h, w) cannot be drawn: "blank" (all 0), "not finite", or "" if it can."""
    finite = maps.isfinite().flatten(1).all(1)
    blank = (maps == 0).flatten(1).all(1)
    pairs = zip(finite.tolist(), blank.tolist(), strict=True)
    return ["blank" if b else "" if f else "not finite" for f, b in pairs]
