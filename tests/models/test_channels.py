"""Networks for images of 1, 3 or 4 channels: every family, its cost, its JSON, its kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from leanres.errors import UserError
from leanres.models.cost import count_params, summarize
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.preprocess import ImageClassifier, Preprocess, check_fit
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import FAMILIES, config_from_dict, config_to_dict, fitted

CONFIGS = {
    "speednet": SpeedNetConfig((8, 16), activation="gelu"),
    "speednet-residual": SpeedNetConfig((8, 16), depth=3, residual=True),
    "davidnet": DavidNetConfig((8, 8, 16, 16)),
    "branchnet": BranchNetConfig((8, 8, 16, 16), 8),
    "resnet": ResNetConfig((8, 16), (1, 1)),
    "resnet-imagenet": ResNetConfig((8, 16), (1, 1), stem="imagenet", block="wide"),
    "resnet-shake": ResNetConfig((8, 16), (1, 1), block="shake", shortcut="shift"),
}
BY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
BY_CHANNELS = pytest.mark.parametrize("channels", [1, 3, 4])


def test_every_family_is_tried():
    assert {type(config) for config in CONFIGS.values()} == set(FAMILIES.values())


@BY_CONFIG
@BY_CHANNELS
def test_a_network_takes_images_of_its_channels_and_its_first_filters_have_as_many(
    config, channels
):
    own = fitted(config, 7, channels)
    model = own.build().eval()
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == channels
    cost = summarize(own)
    assert cost.input_size == (channels, 32, 32)
    assert cost.params == count_params(own) == sum(p.numel() for p in model.parameters())
    assert config_from_dict(config_to_dict(own)) == own


@BY_CONFIG
def test_a_config_without_channels_in_json_is_of_rgb_images(config):
    values = config_to_dict(config)
    del values["in_channels"]
    assert config_from_dict(values) == config
    assert config.in_channels == 3


@BY_CHANNELS
def test_the_whitened_patches_are_uncorrelated_and_of_equal_variance(channels):
    torch.manual_seed(0)
    mixing = torch.randn(channels, channels) + 2 * torch.eye(channels)
    images = torch.einsum("cd,ndhw->nchw", mixing, torch.randn(400, channels, 12, 12))
    images += images.roll(1, 3)  # neighbours are alike, as in photographs
    model = SpeedNetConfig((8, 16), in_channels=channels).build()
    model.init_from_data_(images)
    half = channels * 4  # the other filters are their negatives
    maps = model.stem(images)[:, :half].transpose(0, 1).flatten(1)
    torch.testing.assert_close(maps @ maps.T / maps.shape[1], torch.eye(half), atol=0.05, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["speednet", "resnet", "davidnet"])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_kernels_compute_what_pytorch_computes(name, channels, precision):
    from leanres.kernels import accelerate

    model = fitted(CONFIGS[name], 10, channels).build()
    torch.manual_seed(1)
    images, labels = torch.randn(8, channels, 32, 32), torch.arange(8)
    found = []
    for forward in (accelerate(model, "cpu", precision)[0], model):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(forward(images).float(), labels)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained)
        found.append((loss.item(), torch.cat([g.flatten() for g in gradients])))
    (own, gradient), (expected, right) = found
    assert own == pytest.approx(expected, rel=1e-5 if precision == "float32" else 0.02)
    limit = 0.02 if precision == "float32" else 0.3
    assert (gradient - right).norm() < limit * right.norm()


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_padded_for_a_gpu_give_the_same_logits(channels):
    from leanres.kernels.pad_channels import pad_channels

    model = ResNetConfig((10, 12), (1, 1), in_channels=channels).build().eval()
    padded = pad_channels(model)
    assert padded is not model
    images = torch.randn(4, channels, 16, 16)
    torch.testing.assert_close(padded(images), model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_classifier_normalises_each_channel_by_its_own_numbers(channels):
    mean, std = (0.1, 0.2, 0.3, 0.4)[:channels], (0.5, 0.6, 0.7, 0.8)[:channels]
    preprocess = Preprocess(8, mean, std, ("a", "b"))
    assert preprocess.channels == channels
    images = torch.randint(256, (3, channels, 8, 8), dtype=torch.uint8)
    per_channel = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    shift, scale = per_channel
    found = ImageClassifier(torch.nn.Identity(), preprocess)(images)
    torch.testing.assert_close(found, (images / 255 - shift) / scale, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=f"images of 3x8x8: the network takes {channels}x8x8"):
        check_fit(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), preprocess)
    with pytest.raises(UserError, match="one of each per channel"):
        replace(preprocess, std=(0.5, 0.5))
