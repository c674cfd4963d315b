"""Class weights and the balanced sampler, against PyTorch's loss and by counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.models.preprocess import Normalize
from leanres.models.resnet import ResNetConfig
from leanres.runs.fit import complete, resume
from leanres.runs.run import create, prepare
from leanres.runs.weights import WEIGHTS
from leanres.training.batch import Batch, epoch_order
from leanres.training.hard_examples import select_hardest_
from leanres.training.loss import backward, loss_of
from leanres.training.recipe import Recipe, from_dict, parse_setting
from leanres.training.recipes import load_recipe, to_toml
from leanres.training.setup import Setup

COUNTS = (30, 8, 2)
NAMES = ("cat", "dog", "owl")
TINY = ResNetConfig((8,), (1,), init="kaiming")


@pytest.fixture
def split() -> Split:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    labels = labels[torch.randperm(40, generator=rng)]
    images = torch.randint(256, (40, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return Split(images, labels, NAMES)


def setup_of(split, device, **settings) -> Setup:
    return Setup(Recipe(**settings), split, Normalize((0.5,) * 3, (0.2,) * 3), device)


def test_balanced_weights_are_scikit_learns(split, device):
    weights = setup_of(split, device, class_weights="balanced").class_weights
    expected = compute_class_weight("balanced", classes=np.arange(3), y=split.labels.numpy())
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert setup_of(split, device).class_weights is None


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_loss_of_a_step_and_its_gradients_are_pytorchs(
    split, device, accumulate, smoothing, mixed
):
    given = {"accumulate": accumulate, "label_smoothing": smoothing}
    setup = setup_of(split, device, class_weights={"owl": 5.0, "dog": 2.0}, **given)
    torch.manual_seed(1)
    model, inputs = nn.Linear(6, 3), torch.randn(40, 6)
    targets = torch.rand(40, 3).softmax(1) if mixed else split.labels
    loss, _ = backward(model, Batch(inputs, targets), setup)
    found = model.weight.grad.clone()
    model.zero_grad()
    weight = torch.tensor([1.0, 2.0, 5.0])
    expected = F.cross_entropy(model(inputs), targets, weight, label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, model.weight.grad)


def test_a_teachers_term_is_not_weighted(split):
    logits, weights = torch.randn(40, 3), torch.tensor([1.0, 2.0, 5.0])
    batch = Batch(torch.empty(40, 0), split.labels, torch.randn(40, 3))
    mean = weights[split.labels].mean()
    whole, half = Recipe(distill_weight=1.0), Recipe(distill_weight=0.5)
    taught = loss_of(logits, batch, whole, weights, mean)
    torch.testing.assert_close(taught, loss_of(logits, batch, whole))
    own = F.cross_entropy(logits, split.labels, weights, label_smoothing=half.label_smoothing)
    expected = 0.5 * taught + 0.5 * own
    torch.testing.assert_close(loss_of(logits, batch, half, weights, mean), expected)


def test_the_selector_learns_from_the_weighted_loss_of_all_images(split, device):
    given = {"selector": TINY, "select_fraction": 0.5, "label_smoothing": 0.1}
    setup = setup_of(split, device, class_weights={"owl": 5.0}, accumulate=2, **given)
    torch.manual_seed(2)
    selector, inputs = nn.Linear(6, 3), torch.randn(40, 6)
    kept = select_hardest_(selector, Batch(inputs, split.labels), setup)
    weight = torch.tensor([1.0, 1.0, 5.0])
    found = selector.weight.grad.clone()
    selector.zero_grad()
    logits = selector(inputs)
    F.cross_entropy(logits, split.labels, weight, label_smoothing=0.1).backward()
    torch.testing.assert_close(found, selector.weight.grad)
    losses = F.cross_entropy(logits, split.labels, weight, label_smoothing=0.1, reduction="none")
    assert set(kept.tolist()) == set(losses.topk(20).indices.tolist())


@pytest.mark.parametrize("text", ["class_weights={cat = 2.0, owl = 3}", "class_weights=balanced"])
def test_class_weights_are_written_in_toml(text, tmp_path):
    recipe = from_dict(dict([parse_setting(text)]))
    assert recipe.class_weights in ({"cat": 2.0, "owl": 3.0}, "balanced")
    assert from_dict(recipe.to_dict()) == recipe
    (tmp_path / "own.toml").write_text(to_toml(recipe))
    assert load_recipe(str(tmp_path / "own.toml")) == recipe


@pytest.mark.parametrize("value", ["equal", {"cat": 0}, {"cat": "x"}, {}, ["cat"]])
def test_other_class_weights_are_refused(value):
    with pytest.raises(UserError, match="class_weights"):
        Recipe(class_weights=value)


def test_a_weight_of_an_unknown_class_is_refused_before_the_training(split, device):
    data = Dataset("arrays", split, None, None)
    recipe = Recipe(model=TINY, class_weights={"cta": 2.0}, augment=())
    with pytest.raises(UserError, match="class_weights: no class 'cta'; did you mean 'cat'"):
        prepare(recipe, data, device)


def test_a_balanced_epoch_draws_each_class_alike_and_each_image_of_a_class_alike(split):
    for epoch in range(3):
        order = epoch_order(split, 0, epoch, balanced=True)
        assert len(order) == 40
        assert sorted(split.labels[order].bincount().tolist()) == [13, 13, 14]
        times = order.bincount(minlength=40)
        for label in range(3):
            own = times[split.labels == label]
            assert own.max() - own.min() <= 1
        assert torch.equal(order, epoch_order(split, 0, epoch, balanced=True))
        assert not torch.equal(order, epoch_order(split, 0, epoch + 1, balanced=True))
        assert not torch.equal(order, epoch_order(split, 1, epoch, balanced=True))


def test_a_resumed_run_with_weights_and_sampler_equals_the_uninterrupted_one(
    split, device, tmp_path
):
    recipe = Recipe(
        model=TINY,
        epochs=2,
        batch_size=16,
        accumulate=2,
        augment=(("alternating_flip", {}),),
        class_weights="balanced",
        balanced_sampler=True,
    )
    data = Dataset("arrays", split, None, split.subset(range(40)))
    for name, stop in (("whole", None), ("parts", 1)):
        complete(create(tmp_path / name, recipe, data, device), until_epoch=stop)
    resume(tmp_path / "parts", dataset=data, device=device)
    whole, parts = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    unweighted = replace(recipe, class_weights="")
    complete(create(tmp_path / "plain", unweighted, data, device))
    assert (tmp_path / "plain" / WEIGHTS).read_bytes() != whole
