"""Inference against a plain loop over single images in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from leanres.errors import UserError
from leanres.metrics.inference import TTA, UNCERTAIN_MARGIN, predict_both, predict_logits

N, K, SIDE = 11, 5, 8


def normalize(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - 120.0) / 60.0


class RecordingNetwork(nn.Module):
    """A small network with batch norm and dropout that records each batch it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * SIDE * SIDE, K)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return self.head(self.drop(self.norm(self.stem(images)).tanh().flatten(1)))


@pytest.fixture
def model() -> RecordingNetwork:
    torch.manual_seed(0)
    network = RecordingNetwork()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2.0)
    return network.eval()


@pytest.fixture
def images() -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (N, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)


def views_of(image: np.ndarray, tta: str) -> list[tuple[np.ndarray, float]]:
    """The views (C, H, W) of one image and their weights, as the documentation has them."""
    mirror = image[:, :, ::-1]
    if tta == "none":
        return [(image, 1.0)]
    if tta == "flip":
        return [(image, 0.5), (mirror, 0.5)]
    views = [(image, 0.25), (mirror, 0.25)]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    for corner in (0, 2):
        shifted = padded[:, corner : corner + SIDE, corner : corner + SIDE]
        views += [(shifted, 0.125), (shifted[:, :, ::-1], 0.125)]
    return views


def policy_for(model: nn.Module, image: np.ndarray) -> str:
    """The policy that "flip-shift-unsure" applies to one image."""
    pair = torch.from_numpy(np.stack([image, image[:, :, ::-1]]))
    with torch.no_grad():
        first, second = model(pair).mean(0).softmax(0).sort(descending=True).values[:2]
    return "flip-shift" if first - second < UNCERTAIN_MARGIN else "flip"


def loop_logits(model: nn.Module, images: torch.Tensor, tta: str) -> torch.Tensor:
    rows = []
    for image in normalize(images).numpy():
        views = views_of(image, tta if tta != "flip-shift-unsure" else policy_for(model, image))
        batch = torch.from_numpy(np.stack([view for view, _ in views]))
        weights = torch.tensor([weight for _, weight in views])
        with torch.no_grad():
            rows.append((weights[:, None] * model(batch)).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("tta", TTA)
def test_every_policy_equals_a_loop_over_single_images(model, images, tta):
    expected = loop_logits(model, images, tta)
    found = predict_logits(model, images, normalize=normalize, tta=tta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tta", TTA)
def test_the_weights_of_the_views_sum_to_one(images, tta):
    views = list(TTA[tta].views(normalize(images)))
    assert sum(weight for _, weight in views) == 1.0
    assert all(view.shape == images.shape for view, _ in views)
    assert torch.equal(views[0][0], normalize(images))


@pytest.mark.parametrize("tta", TTA)
def test_plain_and_augmented_logits_are_computed_together(model, images, tta):
    plain, augmented = predict_both(model, images, normalize=normalize, tta=tta)
    assert torch.equal(plain, predict_logits(model, images, normalize=normalize))
    assert torch.equal(augmented, predict_logits(model, images, normalize=normalize, tta=tta))


def test_only_uncertain_images_are_shifted(model, images):
    model.head.weight.data.mul_(2)
    policies = [policy_for(model, image) for image in normalize(images).numpy()]
    assert 0 < policies.count("flip-shift") < len(policies)  # the test needs both kinds
    model.seen.clear()
    predict_both(model, images, normalize=normalize, tta="flip-shift-unsure")
    assert [len(batch) for batch in model.seen] == [N, N, *[policies.count("flip-shift")] * 4]


def test_the_policies_differ_for_a_network_that_is_not_symmetric(model, images):
    found = [predict_logits(model, images, normalize=normalize, tta=tta) for tta in TTA]
    assert (found[0] - found[1]).abs().max() > 0.01
    assert (found[1] - found[2]).abs().max() > 0.01


def test_an_image_and_its_mirror_get_the_same_logits_under_flip(model, images):
    here = predict_logits(model, images, normalize=normalize, tta="flip")
    there = predict_logits(model, images.flip(3), normalize=normalize, tta="flip")
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tta", TTA)
@pytest.mark.parametrize("batch_size", [1, 4, N, 500])
def test_the_batch_size_does_not_change_the_logits(model, images, tta, batch_size):
    whole = predict_logits(model, images, normalize=normalize, tta=tta, batch_size=N)
    parts = predict_logits(model, images, normalize=normalize, tta=tta, batch_size=batch_size)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_batches_are_of_the_given_size_or_smaller(model, images):
    predict_logits(model, images, normalize=normalize, tta="flip", batch_size=4)
    assert [len(batch) for batch in model.seen] == [4, 4, 4, 4, 3, 3]


def test_a_model_in_training_mode_predicts_in_eval_mode_and_stays_in_training_mode(model, images):
    expected = predict_logits(model, images, normalize=normalize)
    statistics = model.norm.running_mean.clone()
    found = predict_logits(model.train(), images, normalize=normalize)
    assert torch.equal(found, expected)
    assert torch.equal(model.norm.running_mean, statistics)
    assert all(module.training for module in model.modules())


def test_a_frozen_part_of_a_training_model_stays_frozen(model, images):
    model.train().norm.eval()
    predict_logits(model, images, normalize=normalize)
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)


def test_the_mode_is_restored_when_the_network_fails(model, images):
    with pytest.raises(RuntimeError):
        predict_logits(model.train(), images[:, :, :4], normalize=normalize)
    assert all(module.training for module in model.modules())


def test_a_compiled_model_keeps_its_mode_too(model, images):
    compiled = torch.compile(nn.Sequential(model.stem, model.norm, nn.Flatten()), backend="eager")
    compiled.train()
    expected = compiled._orig_mod.eval()(normalize(images)).detach()
    compiled._orig_mod.train()
    torch.testing.assert_close(predict_logits(compiled, images, normalize=normalize), expected)
    assert all(module.training for module in compiled.modules())


def test_the_network_gets_channels_last_batches_without_gradients(model, images):
    predict_logits(model, images, normalize=normalize, tta="flip-shift")
    assert len(model.seen) == 6
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in model.seen)
    assert all(x.is_inference() for x in model.seen)


def test_the_images_are_left_unchanged(model, images):
    before = images.clone()
    predict_logits(model, images, normalize=lambda x: normalize(x).mul_(1), tta="flip-shift")
    assert torch.equal(images, before)


def test_autocast_is_entered_once_and_the_logits_are_still_float32(model, images):
    entered = []

    @contextmanager
    def autocast() -> Iterator[None]:  # a contextmanager can be entered only once
        entered.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    plain = predict_logits(model, images, normalize=normalize)
    found = predict_logits(model, images, normalize=normalize, batch_size=3, autocast=autocast())
    assert entered == [True]
    assert found.dtype == torch.float32
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0.1, atol=0.1)


def test_the_logits_can_be_used_in_a_training_step_afterwards(model, images):
    logits = predict_logits(model, images, normalize=normalize)
    temperature = torch.ones((), requires_grad=True)
    (logits * temperature).logsumexp(1).sum().backward()
    assert temperature.grad.isfinite()


def test_a_model_without_weights_runs_where_the_images_are(images):
    found = predict_logits(nn.Flatten(), images, normalize=normalize)
    assert torch.equal(found, normalize(images).flatten(1))


def test_the_error_for_an_unknown_policy_names_the_nearest(model, images):
    with pytest.raises(UserError, match="no test-time augmentation 'flips'; did you mean 'flip'"):
        predict_logits(model, images, normalize=normalize, tta="flips")


@pytest.mark.parametrize(
    ("change", "batch_size", "message"),
    [
        (lambda x: x.float(), 4, r"images \(11, 3, 8, 8\) float32: give uint8"),
        (lambda x: x[0], 4, r"images \(3, 8, 8\) uint8"),
        (lambda x: x[:0], 4, "no images"),
        (lambda x: x, 0, "batch size of 0"),
    ],
)
def test_invalid_images_are_described(model, images, change, batch_size, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(model, change(images), normalize=normalize, batch_size=batch_size)
