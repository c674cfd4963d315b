"""Sharpness-aware steps against the papers' formulas, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanres.data.split import channel_stats
from leanres.models.preprocess import Normalize
from leanres.training.loop import TrainState, steps
from leanres.training.optim import OPTIMIZERS
from leanres.training.recipe import Recipe
from leanres.training.sam import sam_perturbed_
from leanres.training.setup import Setup


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def with_gradients(model: nn.Module) -> nn.Module:
    model(torch.randn(8, 3, 2, 2)).square().sum().backward()
    return model


def numbers(model: nn.Module, of: str = "data") -> list[float]:
    return [x for p in model.parameters() for x in getattr(p, of).flatten().tolist()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_weights_climb_by_the_formula_and_come_back_bit_for_bit(adaptive):
    model = with_gradients(network())
    w, g = numbers(model), numbers(model, "grad")
    unit = [abs(x) + 0.01 if adaptive else 1.0 for x in w]
    norm = sum((u * x) ** 2 for u, x in zip(unit, g, strict=True)) ** 0.5
    expected = [x + 0.3 * u * u * d / norm for x, u, d in zip(w, unit, g, strict=True)]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with sam_perturbed_(model, 0.3, adaptive):
        assert numbers(model) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert all(p.grad is None for p in model.parameters())
        model(torch.randn(8, 3, 2, 2))  # moves the running statistics
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_without_a_gradient_nothing_moves_and_nothing_is_nan():
    model = network()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = numbers(model)
    with sam_perturbed_(model, 0.5):
        assert numbers(model) == before


@pytest.mark.parametrize("weight", [1.0, 5.0])  # of the first class
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_goes_down_the_gradient_found_up_the_hill(digits, device, accumulate, weight):
    recipe = Recipe(
        class_weights={digits.train.classes[0]: weight},
        optimizer="sgd",
        lr=0.1,
        momentum=0.0,
        nesterov=False,
        batch_size=80,
        epochs=1,
        accumulate=accumulate,
        augment=(),
        progressive_resizing=(),
        sam_rho=0.2,
    )
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Recorder(nn.Module):
        def forward(self, images):
            seen.append(images)
            return normalize(images)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    start = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    normalize = Normalize(*channel_stats(digits.train))
    state = TrainState(model, OPTIMIZERS["sgd"](model, recipe), ema=None)
    result = next(steps(state, Setup(recipe, digits.train, Recorder(), device)))

    inputs = normalize(seen[0]).flatten(1)
    labels = torch.tensor([_label(image, digits.train) for image in seen[0]])

    of_class = torch.tensor([weight] + [1.0] * 9)

    def gradient(weight, bias):
        weight, bias = (x.clone().requires_grad_() for x in (weight, bias))
        smoothing = recipe.label_smoothing
        logits = inputs @ weight.T + bias
        loss = nn.functional.cross_entropy(logits, labels, of_class, label_smoothing=smoothing)
        return loss.item(), torch.autograd.grad(loss, (weight, bias))

    loss, first = gradient(*start)
    norm = sum(g.square().sum() for g in first).sqrt()
    _, second = gradient(*(w + 0.2 * g / norm for w, g in zip(start, first, strict=True)))
    expected = [w - 0.1 * g for w, g in zip(start, second, strict=True)]
    torch.testing.assert_close(model[1].weight.detach(), expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model[1].bias.detach(), expected[1], rtol=1e-4, atol=1e-6)
    assert float(result.loss) == pytest.approx(loss, rel=1e-5)


def _label(image: torch.Tensor, split) -> int:
    same = (split.images == image).flatten(1).all(1)
    return int(split.labels[same][0])
