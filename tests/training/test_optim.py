from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from leanres.training.muon import Muon, orthogonalize
from leanres.training.optim import OPTIMIZERS, SCHEDULES, lr_factor, parameter_groups, set_lr_
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
    result = orthogonalize(matrix, steps=5)
    inner = u.T @ result @ v.T  # diagonal, if the singular vectors are kept
    assert torch.allclose(inner, inner.diagonal().diag(), atol=1e-8)
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3


def test_muon_does_what_a_plain_loop_does():
    weight = nn.Parameter(torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1)))
    reference, buffer = weight.detach().clone(), torch.zeros(6, 2, 3, 3)
    optimizer = Muon([weight], lr=0.1, momentum=0.8)
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        weight.grad = torch.randn(weight.shape, generator=rng)
        buffer = 0.8 * buffer + weight.grad
        x = (weight.grad + 0.8 * buffer).reshape(6, -1)
        x = x / (x.norm() + 1e-7)
        for _ in range(3):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        reference = reference * math.sqrt(6) / reference.norm() - 0.1 * x.reshape(weight.shape)
        optimizer.step()
        assert torch.allclose(weight, reference, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_holds_every_parameter_once_and_lowers_the_loss(name):
    model = network()
    recipe = Recipe(lr=0.01, bias_lr=0.01, head_lr=0.01, optimizer=name)
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
    (optimizer,) = OPTIMIZERS["sgd"](ours, Recipe(optimizer="sgd", lr=0.1, weight_decay=0.01))
    plain = torch.optim.SGD(
        theirs.parameters(), 0.1, momentum=0.8, nesterov=True, weight_decay=0.01
    )
    for _ in range(3):
        for model, opt in ((ours, optimizer), (theirs, plain)):
            model(torch.ones(2, 3, 6, 6)).square().sum().backward()
            opt.step()
            opt.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_biases_and_norm_scales_are_not_decayed_where_the_recipe_says_so():
    (optimizer,) = OPTIMIZERS["sgd"](
        network(), Recipe(optimizer="sgd", lr=0.1, weight_decay=0.004, decay_all=False)
    )
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {4: 0.004, 2: 0.004, 1: 0.0}


def test_muon_decays_the_classifier_and_biases_as_told_and_never_the_filters():
    recipe = Recipe(optimizer="muon", weight_decay=0.1, decay_all=False)
    muon, others = OPTIMIZERS["muon"](network(), recipe)
    assert {g["weight_decay"] for g in muon.param_groups} == {0.0}
    decays = {p.ndim: g["weight_decay"] for g in others.param_groups for p in g["params"]}
    assert decays == {2: 0.1, 1: 0.0}


def test_parameters_that_do_not_train_are_in_no_group():
    model = network()
    model[0].weight.requires_grad_(False)
    assert parameter_groups(model)["filters"] == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_its_peak_after_the_rise(name):
    factors = [lr_factor(name, step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1)
    assert all(0 < f <= 1 for f in factors)


def test_cosine_equals_pytorchs():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], 1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert lr_factor("cosine", step, 50) == pytest.approx(oracle.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_the_factor_is_of_the_peak_however_often_it_is_set():
    (optimizer,) = OPTIMIZERS["sgd"](network(), Recipe(optimizer="sgd", lr=0.5))
    for factor in (0.1, 0.7, 0.4):
        set_lr_([optimizer], factor)
    assert {g["lr"] for g in optimizer.param_groups} == {0.2}
