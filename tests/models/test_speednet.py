"""SpeedNet against plain functions, its whitening against numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from leanres.data.split import channel_stats
from leanres.errors import UserError
from leanres.models.preprocess import Normalize
from leanres.models.speednet import SpeedNet, SpeedNetConfig


def network(**settings) -> SpeedNet:
    torch.manual_seed(0)
    return SpeedNetConfig((8, 16, 16), **settings).build()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("activation", "side"),
    [("relu", 32), ("relu", 24), ("hardswish", 32), ("silu", 32), ("gelu", 32)],
)
def test_a_forward_pass_equals_one_of_plain_functions(depth, residual, activation, side):
    model = network(depth=depth, residual=residual, activation=activation).eval()
    act = getattr(F, activation)
    rng = torch.Generator().manual_seed(1)
    for p in model.buffers():  # as after some training
        if p.is_floating_point():
            p.copy_(torch.rand(p.shape, generator=rng) + 0.5)
    w = model.state_dict()
    images = torch.randn(4, 3, side, side, generator=rng)

    def norm(x, name):
        kept = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *kept, eps=1e-6)

    x = act(F.conv2d(images, w["stem.weight"], w["stem.bias"]))
    for i in range(3):
        stage = f"stages.{i}"
        x = F.max_pool2d(F.conv2d(x, w[f"{stage}.conv1.weight"], padding=1), 2)
        pooled = x = act(norm(x, f"{stage}.norm1"))
        for k in range(2, depth + 1):
            x = norm(F.conv2d(x, w[f"{stage}.conv{k}.weight"], padding=1), f"{stage}.norm{k}")
            x = act(x + pooled if residual and k == depth else x)
    expected = x.amax((2, 3)) @ w["head.weight"].T
    torch.testing.assert_close(model(images), expected)


def test_the_parameters_are_3x3_filters_norms_a_stem_and_a_head():
    for depth in (2, 4):
        chain = [o for _, o in pairwise((24, 8, 16, 16)) for _ in range(depth)]
        weights = sum(9 * i * o for i, o in pairwise((24, *chain)))
        rest = 24 * 12 + 24 + 2 * sum(chain) + 160  # the stem, norms, the head
        assert sum(p.numel() for p in network(depth=depth).parameters()) == weights + rest


def test_filters_start_as_a_partial_identity_and_initial_logits_are_small():
    model = network()
    conv = model.stages[1].conv1.weight
    identity = torch.zeros(8, 8, 3, 3)
    identity[range(8), range(8), 1, 1] = 1
    assert torch.equal(conv[:8], identity)
    assert 0 < conv[8:].abs().max() < 0.2
    assert float(model.head.weight.detach().std()) == pytest.approx(1 / 16, rel=0.2)


def test_norm_scales_and_the_filters_of_the_stem_are_frozen():
    idle = {name for name, p in network().named_parameters() if not p.requires_grad}
    norms = {f"stages.{i}.norm{k}.weight" for i in range(3) for k in (1, 2)}
    assert idle == {"stem.weight", *norms}


@pytest.mark.parametrize("px", [2, 3])
def test_after_initialisation_from_data_the_stem_whitens_the_patches(digits, px):
    model = network(whiten_px=px)
    images = Normalize(*channel_stats(digits.train))(digits.train.images[:300])
    model.init_from_data_(images)
    patches = np.lib.stride_tricks.sliding_window_view(images.numpy(), (px, px), (2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * px**2).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    found = model.stem(images).double().permute(0, 2, 3, 1).flatten(0, 2).detach().numpy()
    half = 3 * px**2
    np.testing.assert_allclose(found[:, :half], -found[:, half:], atol=1e-4)
    moments = found[:, :half].T @ found[:, :half] / len(found)
    # 1 except where the images hardly vary: grey digits vary in one of three colour directions
    np.testing.assert_allclose(moments, np.diag(eigenvalues / (eigenvalues + 5e-4)), atol=2e-3)
    assert moments.max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": ()}, "widths = (): give one width per stage"),
        ({"depth": 1}, "depth = 1: give a whole number from 2 to 1000"),
        ({"whiten_px": 2.5}, "whiten_px = 2.5"),
        ({"residual": "x"}, "residual = 'x': give true or false"),
        ({"activation": "swish"}, "no activation 'swish'"),
        ({"activation": 1}, "activation = 1: give a name"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        SpeedNetConfig(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
