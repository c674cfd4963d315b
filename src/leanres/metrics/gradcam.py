"""Where a network looked: Grad-CAM and Grad-CAM++ maps of any layer that has height and width."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from leanres.errors import UserError
from leanres.metrics.inference import evaluating
from leanres.registry import Table, unknown

BATCH = 100  # images whose activations and gradients are held at once


def gradcam_weights(maps: Tensor, grads: Tensor) -> Tensor:
    """Weight of each channel: its mean gradient. (N, C, h, w) twice -> (N, C).

    Selvaraju et al. 2017, arXiv:1610.02391, eq. 1.
    """
    return grads.mean((2, 3))


def gradcam_pp_weights(maps: Tensor, grads: Tensor) -> Tensor:
    """Weight of each channel: its rising gradients, each by its own share. -> (N, C).

    Chattopadhay et al. 2018, arXiv:1710.11063, sec. 3, for the exponential of the class's score:
    its factor exp(score) is left out, as it scales the whole map. Meant for maps after a ReLU:
    where a map is negative a share can have a pole.
    """
    squares = grads.square()
    bottom = 2 * squares + maps.sum((2, 3), keepdim=True) * squares * grads
    # 0 / 0 where a gradient is 0: such a position has no say
    shares = torch.where(bottom == 0, 0.0, squares / torch.where(bottom == 0, 1.0, bottom))
    return (shares * grads.relu()).sum((2, 3))


METHODS: Table[Callable[[Tensor, Tensor], Tensor]] = Table(
    "map", {"Grad-CAM": gradcam_weights, "Grad-CAM++": gradcam_pp_weights}
)


def map_layers(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Every layer whose output is a map larger than 1x1: name -> (height, width), as they run.

    `images` (N, C, H, W) are what the network reads, normalised; the first is looked at.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2:].numel() > 1:
            sizes[name] = (out.shape[2], out.shape[3])

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(
                    module.register_forward_hook(lambda _m, _i, out, name=name: note(name, out))
                )
        model(images[:1])
    return sizes


def usual_layers(sizes: dict[str, tuple[int, int]], count: int = 2) -> list[str]:
    """The outermost (then last) layer of each of the last `count` map sizes of `map_layers`."""
    names = list(sizes)
    # A stage's end rather than a convolution within the next one that has not yet been pooled.
    ranked = sorted(names, key=lambda name: (-name.count("."), names.index(name)))
    best = {sizes[name]: name for name in ranked}
    return sorted(best.values(), key=names.index)[-count:]


def explain(
    model: nn.Module, images: Tensor, layer: str, classes: Tensor, method: str = "Grad-CAM"
) -> Tensor:
    """How much each position of `layer` speaks for the class: (N, h, w) float32, 0 or more.

    `images` (N, C, H, W) float, normalised, on the model's device; `classes` (N,) int64. The maps
    are not scaled: `invalid_map_reasons` names the undrawable ones. The model, its gradients
    and its hooks are left as they were. A layer without maps or an unknown method is a UserError.
    """
    weigh = METHODS[method]
    sizes = map_layers(model, images)
    if layer not in sizes:
        raise UserError(unknown("layer with maps", layer, list(sizes)))
    module = model.get_submodule(layer)
    chunks, wanted = torch.split(images, BATCH), torch.split(classes.to(images.device), BATCH)
    with evaluating(model):
        pairs = zip(chunks, wanted, strict=True)
        return torch.cat([_maps(model, module, *pair, weigh) for pair in pairs])


def _maps(
    model: nn.Module,
    module: nn.Module,
    images: Tensor,
    classes: Tensor,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    seen: list[Tensor] = []

    def tap(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        # A leaf of its own: nothing before it is differentiated, and frozen weights do not matter.
        seen.append(out.detach().requires_grad_())
        return seen[-1].clone()  # the next layer may write into what it is given

    with torch.enable_grad(), module.register_forward_hook(tap):
        logits = model(images)
    # In eval mode an image's score depends on its own maps alone, so one sum serves all.
    score = logits.gather(1, classes[:, None]).sum()
    (grads,) = torch.autograd.grad(score, seen[-1])
    maps = seen[-1].detach()
    return (weigh(maps, grads)[:, :, None, None] * maps).sum(1).relu().float()


def invalid_map_reasons(maps: Tensor) -> list[str]:
    """Why each map (N, h, w) cannot be drawn: "blank" (0 everywhere), "not finite", or ""."""
    finite = maps.isfinite().flatten(1).all(1)
    blank = (maps == 0).flatten(1).all(1)
    pairs = zip(finite.tolist(), blank.tolist(), strict=True)
    return ["blank" if b else "" if f else "not finite" for f, b in pairs]
