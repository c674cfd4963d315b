"""Mixes: targets are weighted by the shares of the pixels, which differ from image to image."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import stats

from leanres.augment.mix import MIXES
from leanres.augment.rng import Draw, generator
from leanres.errors import UserError
from leanres.registry import check_settings

N = 400


def draw(seed: int = 0) -> Draw:
    return Draw(generator(seed, 1))


def labelled(n: int = N, size: tuple[int, int] = (9, 14)) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose channels are (their number, row, column), and their number as a target."""
    h, w = size
    number = torch.arange(n).view(n, 1, 1).expand(n, h, w)
    row, column = torch.arange(h)[:, None].expand(n, h, w), torch.arange(w).expand(n, h, w)
    return torch.stack((number, row, column), 1).float(), torch.eye(n)


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_mix_keeps_shape_dtype_and_its_input_is_seeded_and_gives_probabilities(name, dtype):
    rng = torch.Generator().manual_seed(3)
    images = torch.randint(256, (8, 3, 12, 10), generator=rng).to(dtype)
    targets = torch.rand(8, 5, generator=rng).softmax(1)
    before = images.clone(), targets.clone()
    (pixels, shares), again = (MIXES[name](images, targets, draw()) for _ in range(2))
    assert (pixels.shape, pixels.dtype) == (images.shape, dtype)
    assert (shares.shape, shares.dtype) == (targets.shape, targets.dtype)
    assert shares.sum(1).tolist() == pytest.approx([1] * 8, abs=1e-6)
    assert shares.min() >= 0
    assert torch.equal(pixels, again[0])
    assert torch.equal(shares, again[1])
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    assert not torch.equal(pixels, MIXES[name](images, targets, draw(seed=1))[0])


@pytest.mark.parametrize("name", MIXES)
def test_no_mix_waits_for_the_device(name, no_waiting):
    (images, targets), own = labelled(8), draw()
    with no_waiting():
        MIXES[name](images, targets, own)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_pixels_as_it_blends_targets_by_shares_from_beta(alpha):
    targets = torch.eye(N)
    images = targets.view(N, 1, 20, 20)  # an image is its own target, so the mixtures are equal
    mixed, shares = MIXES["mixup"](images, targets, draw(), alpha=alpha)
    assert torch.equal(mixed.flatten(1), shares)
    assert (shares > 0).sum(1).max() == 2
    partners = (shares - shares.diag().diag()).argmax(1)[shares.diag() < 1]
    assert len(partners.unique()) == len(partners)  # a permutation: nobody is used twice
    own = shares.diag().double()
    low = own[own < 0.5].numpy()
    law = stats.beta(alpha, alpha)
    assert stats.kstest(low, lambda x: 2 * law.cdf(x)).pvalue > 1e-3
    assert own.unique().numel() > 0.9 * len(low)  # the shares differ


def test_mixup_rounds_bytes():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(200).view(N, 1, 1, 1)
    targets = images.view(N, 1) / 255
    mixed, shares = MIXES["mixup"](images, targets, draw(), alpha=1.0)
    assert (mixed.view(N, 1) - 255 * shares).abs().max() < 0.501
    assert mixed.unique().numel() > 50


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_pastes_a_rectangle_from_the_same_place_and_counts_its_pixels(alpha):
    images, targets = labelled()
    mixed, shares = MIXES["cutmix"](images, targets, draw(), alpha=alpha)
    assert torch.equal(mixed[:, 1:], images[:, 1:])  # every pixel is where it was
    for i in range(N):
        numbers = mixed[i, 0].long()
        counted = torch.bincount(numbers.flatten(), minlength=N) / numbers.numel()
        assert torch.allclose(counted, shares[i], atol=1e-6)
        pasted = numbers != i
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()
        assert len(numbers.unique()) <= 2
    pasted = (mixed[:, 0] != images[:, 0]).double()
    assert pasted.amax(0).min() == 1  # every place is pasted over in some image
    partners = [int(n[n != i][0]) for i, n in enumerate(mixed[:, 0].long()) if (n != i).any()]
    assert len(set(partners)) == len(partners)


def test_cutmix_replaces_areas_distributed_as_in_a_plain_loop_of_the_paper():
    side, rng = 16, np.random.default_rng(0)
    areas = []
    for _ in range(20_000):
        cut, (x, y) = np.sqrt(1 - rng.beta(1, 1)), rng.integers(side, size=2)
        half = int(cut * side / 2)
        spans = [min(c + half, side) - max(c - half, 0) for c in (x, y)]
        areas.append(spans[0] * spans[1] / side**2)
    images, targets = labelled(1000, (side, side))
    shares = MIXES["cutmix"](images, targets, draw())[1]
    assert stats.ks_2samp(1 - shares.diag().numpy(), areas).pvalue > 1e-3


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_ricap_puts_a_crop_of_another_image_into_each_corner(beta):
    images, targets = labelled()
    mixed, shares = MIXES["ricap"](images, targets, draw(), beta=beta)
    seen: set[tuple[bool, ...]] = set()
    for i, (numbers, rows, columns) in enumerate(mixed.long()):
        counted = torch.bincount(numbers.flatten(), minlength=N) / numbers.numel()
        assert torch.allclose(counted, shares[i], atol=1e-6)
        y = next((y for y in range(1, 9) if not continues(numbers, rows, y, 0)), 9)
        x = next((x for x in range(1, 14) if not continues(numbers, columns, x, 1)), 14)
        for part in ((slice(y), slice(x)), (slice(y), slice(x, None)),
                     (slice(y, None), slice(x)), (slice(y, None), slice(x, None))):  # fmt: skip
            assert len(numbers[part].unique()) <= 1
            assert (rows[part].diff(dim=0) == 1).all()
            assert (rows[part].diff(dim=1) == 0).all()
            assert (columns[part].diff(dim=1) == 1).all()
            assert (columns[part].diff(dim=0) == 0).all()
        seen.add((y < 9, x < 14))
    assert (True, True) in seen  # four corners
    assert len(shares.diag()[shares.diag() == 0]) > N / 2  # sources are drawn, not one's own


def continues(numbers: torch.Tensor, places: torch.Tensor, at: int, side: int) -> bool:
    """Whether the picture continues from row or column `at - 1` to `at`, everywhere along it."""
    same = numbers.select(side, at) == numbers.select(side, at - 1)
    return bool((same & (places.select(side, at) == places.select(side, at - 1) + 1)).all())


def test_ricap_reaches_all_of_a_source_from_every_corner_with_boundaries_from_beta():
    images, targets = labelled(2000, (4, 6))
    mixed, _ = MIXES["ricap"](images, targets, draw(), beta=1.0)
    for row, column in ((0, 0), (0, 5), (3, 0), (3, 5)):  # a corner shows its own patch's pixel
        places = mixed[:, 1:, row, column].unique(dim=0)
        assert len(places) == 24
    widths = (mixed[:, 2].diff(dim=2) == 1).all(1).logical_not().sum(1)
    assert widths.max() == 1  # one boundary at most


def test_the_boundary_of_ricap_is_a_beta_share_of_the_side():
    images, targets = labelled(3000, (1, 40))
    mixed, _ = MIXES["ricap"](images, targets, draw(), beta=2.0)
    first = mixed[:, 0, 0] == mixed[:, 0, 0, :1]
    # one row: its height is in the first or the second half, and all that is seen is the width
    widths = first.sum(1).double().numpy() / 40
    assert stats.kstest(widths, stats.beta(2, 2).cdf).statistic < 0.05


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("mixxup", {}, "did you mean 'mixup'"),
        ("mixup", {"alpa": 1}, "did you mean 'alpha'"),
        ("cutmix", {"alpha": 0}, "alpha = 0: give a number from 0.01 to 100"),
        ("ricap", {"beta": True}, "ricap: beta = True: give a number"),
        ("ricap", {"draw": 1}, "no setting of ricap 'draw'"),
    ],
)
def test_a_mix_with_an_unknown_name_or_an_invalid_setting_is_refused(name, settings, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        check_settings(MIXES[name], name, settings)
    assert "\n" not in str(caught.value)
