"""Learning from a teacher: the loss written out, the same views, and teachers that do not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from leanres.data.split import Dataset, channel_stats
from leanres.errors import UserError
from leanres.models.preprocess import Normalize, Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.runs import run as runs
from leanres.runs.fit import fit
from leanres.runs.weights import load_classifier, load_teacher, save_weights
from leanres.training.batch import Batch
from leanres.training.loop import start, steps
from leanres.training.loss import loss_of
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup


@pytest.fixture
def teacher(digits: Dataset, tmp_path):
    """The weights file of a small network that reads digits in its own way."""
    torch.manual_seed(3)
    config = ResNetConfig((4, 8), (1, 1))
    path = tmp_path / "teacher.safetensors"
    means = Preprocess(32, (0.3, 0.3, 0.3), (0.5, 0.5, 0.5), digits.train.classes)
    save_weights(path, config.build(), config, means)
    return path


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_the_loss_is_the_labels_share_and_the_divergence_from_the_teacher(t):
    torch.manual_seed(0)
    logits, taught = torch.randn(2, 6, 4)
    labels = torch.arange(6) % 4
    recipe = Recipe(label_smoothing=0.0, distill_weight=0.3, distill_temperature=t)
    total = 0.0
    for own, theirs, label in zip(logits.tolist(), taught.tolist(), labels.tolist(), strict=True):
        total += 0.7 * -math.log(softmax(own)[label])
        p, q = (softmax([x / t for x in row]) for row in (theirs, own))
        total += 0.3 * t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = loss_of(logits, Batch(torch.empty(6, 0), labels, taught), recipe)
    assert float(found) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_teacher_sees_what_the_student_sees_at_full_size(
    digits, device, small, teacher, accumulate
):
    recipe = replace(small, teacher=str(teacher), accumulate=accumulate, distill_weight=1.0)
    normalize = Normalize(*channel_stats(digits.train))
    known = load_teacher(str(teacher), digits.train, device)
    known.model = load_classifier(teacher)[0].model  # a plain module, to look into
    setup = Setup(recipe, digits.train, normalize, device)
    state = start(setup, known)
    student, taught, batches = [], [], []
    state.model.register_forward_hook(lambda _m, _a, out: student.append(out.detach()))
    state.teacher.model.register_forward_hook(lambda _m, _a, out: taught.append(out.clone()))

    class Recorder(nn.Module):
        def forward(self, images):
            batches.append(images)
            return normalize(images)

    result = next(steps(state, replace(setup, normalize=Recorder())))
    assert batches[0].shape == (200, 3, 32, 32)
    own_way = (batches[0].float() / 255 - 0.3) / 0.5
    expected = state.teacher.model(own_way).detach()
    torch.testing.assert_close(torch.cat(taught)[:200], expected, rtol=1e-4, atol=1e-5)
    t = recipe.distill_temperature
    p, q = ((x / t).softmax(1) for x in (expected, torch.cat(student)))
    divergence = (p * (p / q).log()).sum(1).mean() * t**2
    assert float(result.loss) == pytest.approx(float(divergence), rel=1e-3)
    assert not any(p.requires_grad and p.grad is not None for p in state.teacher.model.parameters())


def test_a_run_learns_from_its_teacher_and_names_it(digits, device, small, teacher, tmp_path):
    recipe = replace(small, teacher=str(teacher), epochs=1)
    fit(tmp_path / "run", recipe, digits, device)
    known, config = load_classifier(teacher)
    rounded = {"half": True}  # another one, by its sum
    save_weights(teacher, known.model, config, known.preprocess, **rounded)
    with pytest.raises(UserError, match=r"is not the one that .* was trained with"):
        runs.reopen(tmp_path / "run", lambda _: digits, lambda _: device, epochs=2)


def test_a_teacher_of_other_classes_is_refused(digits, device, small, teacher):
    few = replace(digits.train, classes=tuple("abcdefghij"))
    recipe = replace(small, teacher=str(teacher), val=0)
    with pytest.raises(UserError, match="give one that was trained on this data"):
        runs.prepare(recipe, replace(digits, train=few), device)


def test_a_teacher_that_is_not_there_is_named(digits, device, small, tmp_path):
    recipe = replace(small, teacher=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"teacher = .*none does not exist: give a run folder"):
        runs.prepare(recipe, digits, device)
