"""Properties of every augmentation, and of several applied in order."""

from __future__ import annotations

import pytest
import torch

from leanres.augment.registry import AUGMENTS, augment
from leanres.augment.rng import Draw, generator

N = 4000


def draw(seed: int = 0, epoch: int = 0, n: int = N) -> Draw:
    return Draw(generator(seed, 1), torch.arange(n), epoch, seed)


def pixels(n: int = 8, side: int = 12) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, 3, side, side), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_augmentation_keeps_shape_dtype_and_its_input_and_is_seeded(name, dtype):
    images = pixels().to(dtype)
    before = images.clone()
    once, again = (AUGMENTS[name](images, draw(n=8)) for _ in range(2))
    assert once.shape == images.shape
    assert once.dtype == dtype
    assert torch.equal(images, before)
    assert torch.equal(once, again)
    assert not torch.equal(once, AUGMENTS[name](images, draw(seed=1, n=8)))


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_image_is_augmented_independently(name):
    same = pixels(1).expand(200, -1, -1, -1).contiguous()
    assert len(AUGMENTS[name](same, draw(n=200)).flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_augmentation_waits_for_the_device(name, dtype, no_waiting):
    images, own = pixels().to(dtype), draw(n=8)
    with no_waiting():
        AUGMENTS[name](images, own)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t[t > 0],
        lambda t: bool(t.any()),
        lambda t: t.nonzero(),
        lambda t: t.index_put_((t > 0,), t[0]),
    ],
)
def test_the_guard_notices_an_operation_that_waits(wait, no_waiting):
    with no_waiting(), pytest.raises(AssertionError, match="waits"):
        wait(torch.arange(4.0))


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (5, 3, 9, 14)])
def test_every_augmentation_takes_a_single_image_and_oblong_ones(name, shape):
    images = torch.randint(256, shape, generator=generator(2), dtype=torch.uint8)
    assert AUGMENTS[name](images, draw(n=shape[0])).shape == shape


@pytest.mark.parametrize("name", AUGMENTS)
def test_floats_stay_in_0_1_and_differ_from_bytes_only_by_rounding(name, photos):
    as_bytes = AUGMENTS[name](photos, draw(n=16))
    as_floats = AUGMENTS[name](photos / 255, draw(n=16))
    assert as_floats.min() >= 0
    assert as_floats.max() <= 1
    assert (as_floats * 255 - as_bytes).abs().max() < 0.51


def test_steps_are_applied_in_order_from_one_generator():
    images = pixels()
    steps = (("crop", {"padding": 1}), ("flip", {}))
    joint = draw()
    by_hand = AUGMENTS["flip"](AUGMENTS["crop"](images, joint, padding=1), joint)
    assert torch.equal(augment(images, steps, draw()), by_hand)
