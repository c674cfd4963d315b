from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from leanres.training.muon import Muon, orthogonalize
from leanres.training.optim import OPTIMIZERS, parameter_groups, set_lr_
from leanres.training.recipe import Recipe


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    other = torch.randn_like(matrix)
    result, _ = orthogonalize(torch.stack((matrix, other)), steps=5)
    inner = u.T @ result @ v.T  # diagonal, if the singular vectors are kept
    assert torch.allclose(inner, inner.diagonal().diag(), atol=1e-8)
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_muon_does_what_a_plain_loop_over_the_filters_does(memory):
    rng = torch.Generator().manual_seed(1)
    shapes = [(6, 2, 3, 3), (40, 4, 3, 3), (6, 2, 3, 3), (6, 2, 1, 1)]  # the second is tall
    weights = [nn.Parameter(torch.randn(s, generator=rng).to(memory_format=memory)) for s in shapes]
    references = [weight.detach().clone() for weight in weights]
    buffers = [torch.zeros(shape) for shape in shapes]
    optimizer = Muon(weights, lr=0.1, momentum=0.8)
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=rng).to(memory_format=memory)
            buffers[i] = 0.8 * buffers[i] + weight.grad
            x = (weight.grad + 0.8 * buffers[i]).reshape(len(weight), -1)
            x = x / (x.norm() + 1e-7)
            for _ in range(3):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            scaled = references[i] * math.sqrt(len(weight)) / references[i].norm()
            references[i] = scaled - 0.1 * x.reshape(weight.shape)
        optimizer.step()
        for weight, reference in zip(weights, references, strict=True):
            assert torch.allclose(weight, reference, atol=1e-5)
            assert weight.is_contiguous(memory_format=memory)


def test_muon_leaves_a_filter_without_a_gradient_alone():
    idle, busy = (nn.Parameter(torch.ones(4, 2, 3, 3)) for _ in range(2))
    busy.grad = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([idle, busy]).step()
    assert torch.equal(idle, torch.ones(4, 2, 3, 3))
    assert not torch.equal(busy, idle)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_holds_every_parameter_once_and_lowers_the_loss(name):
    model = network()
    recipe = Recipe(
        lr=1.0 if name == "adadelta" else 0.01, bias_lr=0.01, head_lr=1.0, optimizer=name
    )
    optimizers = OPTIMIZERS[name](model, recipe)
    held = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len({id(p) for p in held})
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 6, 6, generator=rng), torch.arange(32) % 4
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        loss.backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_sgd_equals_pytorchs_own_with_the_recipes_settings():
    ours, theirs = network(), network()
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.01)
    (optimizer,) = OPTIMIZERS["sgd"](ours, recipe)
    plain = torch.optim.SGD(
        theirs.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    for _ in range(3):
        for model, opt in ((ours, optimizer), (theirs, plain)):
            model(torch.ones(2, 3, 6, 6)).square().sum().backward()
            opt.step()
            opt.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_scaled_head_learns_as_if_logits_were_multiplied():
    recipe = Recipe(optimizer="sgd", lr=0.1, weight_decay=5e-4, head_scale=0.125)
    ours, explicit = network().double(), network().double()
    with torch.no_grad():
        for p in ours[-1].parameters():
            p.mul_(0.125)  # as the loop begins it
    theirs = torch.optim.SGD(
        explicit.parameters(), recipe.lr, recipe.momentum, 0, 5e-4, nesterov=recipe.nesterov
    )
    (mine,) = OPTIMIZERS["sgd"](ours, recipe)
    images, labels = torch.randn(16, 3, 6, 6).double(), torch.arange(16) % 4
    for _ in range(4):
        logits = (ours(images), 0.125 * explicit(images))
        assert torch.allclose(*logits, atol=1e-10)
        for out, optimizer in zip(logits, (mine, theirs), strict=True):
            nn.functional.cross_entropy(out, labels).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_biases_and_norm_scales_are_not_decayed_where_the_recipe_says_so():
    (optimizer,) = OPTIMIZERS["sgd"](
        network(), Recipe(optimizer="sgd", lr=0.1, weight_decay=0.004, decay_all=False)
    )
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {4: 0.004, 2: 0.004, 1: 0.0}


def test_muon_decays_the_classifier_and_biases_as_told_and_never_the_filters():
    recipe = Recipe(optimizer="muon", adamw_weight_decay=0.1, decay_all=False)
    muon, others = OPTIMIZERS["muon"](network(), recipe)
    assert not any("weight_decay" in group for group in muon.param_groups)
    decays = {p.ndim: g["weight_decay"] for g in others.param_groups for p in g["params"]}
    assert decays == {2: 0.1, 1: 0.0}


def test_parameters_that_do_not_train_are_in_no_group():
    model = network()
    model[0].weight.requires_grad_(False)
    assert parameter_groups(model)["filters"] == []


def test_the_factor_is_of_the_peak_however_often_it_is_set():
    (optimizer,) = OPTIMIZERS["sgd"](network(), Recipe(optimizer="sgd", lr=0.5))
    for factor in (0.1, 0.7, 0.4):
        set_lr_([optimizer], factor)
    assert {g["lr"] for g in optimizer.param_groups} == {0.2}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_a_step_can_be_captured(name, on_a_gpu):
    """PyTorch's optimizers that count their steps must count on the device: `capturable`."""
    for optimizer in OPTIMIZERS[name](on_a_gpu, Recipe()):
        for group in optimizer.param_groups:
            assert group.get("capturable", True)
