"""resnet-custom in both readings and custom-resnet: map sizes, plain formulas, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leanres.errors import UserError
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig

THIN = (4, 5, 6, 7)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def layers(model: nn.Module) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
    """Convolutions and norms in the order of their definition."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return convs, [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def randomised_norms(model: nn.Module) -> nn.Module:
    for norm in layers(model)[1]:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return model.eval()


def norm_relu(x, norm):
    stats = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.batch_norm(x, *stats).relu()


def plain_davidnet(model, x, padding3, pool3, pool4):
    """The network of the document, line by line. (N, 3, 32, 32) -> (N, 10)."""
    convs, norms = layers(model)

    def layer(i, x, padding=1, pool=1):
        x = F.conv2d(x, convs[i].weight, padding=padding)
        return norm_relu(F.max_pool2d(x, pool), norms[i])

    x = layer(1, layer(0, x), pool=2)
    x = x + layer(3, layer(2, x))
    x = layer(4, x, padding3, pool3)
    x = layer(5, x, pool=pool4)
    x = x + layer(7, layer(6, x))
    return F.linear(F.max_pool2d(x, 4).flatten(1), model.linear.weight, model.linear.bias)


@pytest.mark.parametrize(
    ("reading", "settings"), [("described", (1, 2, 2)), ("as-built", (0, 3, 1))]
)
def test_resnet_custom_is_the_network_of_its_document(reading, settings):
    model = randomised_norms(DavidNetConfig(THIN, reading).build())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain_davidnet(model, x, *settings))


@pytest.mark.parametrize(
    ("reading", "sides"), [("described", [16, 8, 4]), ("as-built", [16, 4, 4])]
)
def test_the_two_readings_differ_in_their_maps(reading, sides):
    model = DavidNetConfig(THIN, reading).build().eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    maps = [(x := layer(x)).shape[-1] for layer in (model.layer1, model.layer2, model.layer3)]
    assert maps == sides


def plain_branchnet(model, x):
    """custom-resnet as its code ran, line by line. (N, 3, 32, 32) -> (N, 10)."""
    convs, norms = layers(model)

    def conv(i, x, stride=1, padding=0):
        return F.conv2d(x, convs[i].weight, convs[i].bias, stride, padding)

    def wide(i, x):
        return norm_relu(F.max_pool2d(conv(i, x, padding=1), 4, 2), norms[i])

    def deep(i, x):
        return norm_relu(conv(i + 1, norm_relu(conv(i, x), norms[i]), stride=2), norms[i + 1])

    x = norm_relu(conv(0, x, padding=1), norms[0])
    x = wide(1, x) + deep(2, x)
    x = wide(4, x)
    x = wide(5, x) + deep(6, x)
    return conv(9, conv(8, x.mean((2, 3), keepdim=True))).flatten(1)


def test_custom_resnet_is_the_network_of_its_code():
    model = randomised_norms(BranchNetConfig(THIN, head_width=3).build())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain_branchnet(model, x))


def test_custom_resnet_has_maps_of_15_6_and_2_pixels_and_a_bias_in_every_convolution():
    model = BranchNetConfig(THIN).build().eval()
    x = model.stem(torch.randn(1, 3, 32, 32))
    maps = [(x := layer(x)).shape[-1] for layer in (model.layer1, model.layer2, model.layer3)]
    assert maps == [15, 6, 2]
    assert all(conv.bias is not None for conv in layers(model)[0])


@pytest.mark.parametrize("config", [DavidNetConfig(THIN), BranchNetConfig(THIN)])
def test_raw_logits_train_as_the_log_softmax_of_the_originals(config):
    logits = config.build().eval()(torch.randn(4, 3, 32, 32))
    labels = torch.tensor([1, 2, 3, 4])
    assert not torch.allclose(logits.exp().sum(1), torch.ones(4))
    original = F.nll_loss(F.log_softmax(logits, 1), labels)
    torch.testing.assert_close(F.cross_entropy(logits, labels), original)
    torch.testing.assert_close(F.cross_entropy(F.log_softmax(logits, 1), labels), original)


@pytest.mark.parametrize("config", [DavidNetConfig(THIN), BranchNetConfig(THIN)])
def test_larger_images_fit(config):
    assert config.build().eval()(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DavidNetConfig((4, 5, 6)), "widths = (4, 5, 6): give four whole numbers"),
        (lambda: BranchNetConfig((4, 5, 6, 7, 8)), "give four whole numbers from 1 to 65536"),
        (lambda: DavidNetConfig((4, 5, 6, 0)), "widths = (4, 5, 6, 0)"),
        (lambda: DavidNetConfig(reading="as-build"), "did you mean 'as-built'?"),
        (lambda: BranchNetConfig(head_width=0), "head_width = 0"),
        (lambda: BranchNetConfig(num_classes=1), "num_classes = 1"),
        (lambda: DavidNetConfig(num_classes=2.5), "num_classes = 2.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
