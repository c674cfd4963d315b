"""Networks of the zoo compute by the kernels what they compute by PyTorch, and stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.kernels import accelerate
from leanres.kernels.pad_channels import pad_channels
from leanres.models.config import ModelConfig
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import MODELS


def shrunk(config: ModelConfig) -> ModelConfig:
    """A quarter of the width, and at most two blocks a stage."""
    config = replace(config, widths=tuple(max(8, width // 8 * 2) for width in config.widths))
    if isinstance(config, ResNetConfig):
        config = replace(config, depths=tuple(min(2, depth) for depth in config.depths))
    return config


SHAPES = {shrunk(entry.config): name for name, entry in MODELS.items()}  # some become the same
BY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=SHAPES.values())
BY_PRECISION = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def build(shape: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    return shape.build().to(memory_format=torch.channels_last)


def random_images(n: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def loss_and_gradient(
    model: nn.Module, forward: nn.Module, precision: str = "float32"
) -> tuple[float, Tensor]:
    """Of a step on eight images, computed by `forward`; all gradients as one vector."""
    images, labels = random_images(8), torch.arange(8)
    torch.manual_seed(2)  # of dropout and shake-shake
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = forward(images)
    loss = F.cross_entropy(logits.float(), labels)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


def deviation(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


@contextmanager
def accelerated(model: nn.Module, precision: str) -> Iterator[nn.Module]:
    """The network by the kernels; after its use `model` must be what it was."""

    def modules() -> list[tuple[str, type[nn.Module], bool]]:
        return [(name, type(m), m.training) for name, m in model.named_modules()]

    def tensors(module: nn.Module) -> set[int]:
        return {id(t) for t in module.state_dict(keep_vars=True).values()}

    before = modules()
    forward = accelerate(model, "cpu", precision)[0]
    assert tensors(forward) == tensors(model)
    yield forward
    assert modules() == before


@BY_SHAPE
def test_loss_and_gradients_in_float32_are_those_of_pytorch(shape):
    model, plain = build(shape), build(shape)
    with accelerated(model, "float32") as forward:
        loss, gradient = loss_and_gradient(model, forward)
    expected, right = loss_and_gradient(plain, plain)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert deviation(gradient, right) < 0.02  # ReLUs that tip: 0.01 at most
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@BY_SHAPE
def test_in_bfloat16_they_are_as_near_to_float32_as_pytorchs(shape):
    model, plain, exact = build(shape), build(shape), build(shape)
    with accelerated(model, "bfloat16") as forward:
        loss, gradient = loss_and_gradient(model, forward, "bfloat16")
    unfused, rounded = loss_and_gradient(plain, plain, "bfloat16")
    right, precise = loss_and_gradient(exact, exact)
    assert abs(loss - right) < 2 * abs(unfused - right) + 0.02
    # Which of two equal maxima or ReLUs tips differs: of eight images, up to 1.25 times as far.
    assert deviation(gradient, precise) < 1.5 * deviation(rounded, precise)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)


@BY_PRECISION
@BY_SHAPE
def test_in_evaluation_logits_are_those_of_pytorch(shape, precision):
    model = build(shape)
    loss_and_gradient(model, model)  # now running statistics are no batch's own
    model.eval()
    before = copy.deepcopy(model.state_dict())
    images = random_images(5)
    with (
        accelerated(model, precision) as forward,
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        for batch in (images, images[:1]):
            torch.testing.assert_close(forward(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@BY_SHAPE
def test_with_padded_channels_they_are_those_of_the_network(shape):
    model, plain = build(shape), build(shape)
    loss, gradient = loss_and_gradient(model, pad_channels(model))
    expected, right = loss_and_gradient(plain, plain)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert deviation(gradient, right) < 0.02
