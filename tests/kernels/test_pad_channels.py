"""Networks with padded channels, against the networks themselves."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from leanres.kernels.pad_channels import MULTIPLE, pad_channels
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import resolve


def train(model, forward):
    """Losses of three steps of SGD on `model`, computed by `forward`."""
    torch.manual_seed(1)
    images, labels = torch.randn(3, 8, 3, 16, 16), torch.randint(10, (3, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=5e-4)
    losses = []
    for x, y in zip(images, labels, strict=True):
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


CONFIGS = {
    "two stages": ResNetConfig(widths=(12, 20), depths=(2, 1)),
    "a multiple, then not": ResNetConfig(widths=(16, 21), depths=(1, 1), stem="imagenet"),
    "not, then a multiple": ResNetConfig(widths=(9, 16), depths=(1, 1), stem_width=5),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_training_the_padded_clone_trains_the_network(config):
    torch.manual_seed(0)
    plain = config.build()
    model = copy.deepcopy(plain)
    clone = pad_channels(model)
    assert clone is not model
    assert train(model, clone) == pytest.approx(train(plain, plain), rel=1e-4)
    for name, value in plain.state_dict().items():
        ours = model.state_dict()[name]
        assert ours.shape == value.shape
        assert torch.allclose(ours, value, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_in_evaluation_it_reads_the_running_statistics_and_leaves_them(config):
    torch.manual_seed(0)
    model = config.build()
    train(model, model)
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(5, 3, 16, 16)
    clone = pad_channels(model.eval())
    for batch in (images, images[:1]):  # a batch's own statistics would change with the batch
        torch.testing.assert_close(clone(batch), model(batch), rtol=1e-4, atol=1e-5)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_the_convolutions_see_multiples_of_eight():
    clone = pad_channels(resolve("resnet26-97").build())
    seen = []
    for module in clone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    clone(torch.randn(2, 3, 32, 32))
    assert set(seen) == {128, 104, 168, 200}
    assert not any(width % MULTIPLE for width in seen)


@pytest.mark.parametrize("name", ["resnet18", "speednet", "custom-resnet", "modified-resnet-4"])
def test_a_network_of_such_channels_is_left_alone(name):
    model = resolve(name).build()
    assert pad_channels(model) is model


@pytest.mark.parametrize("change", [{"shortcut": "pad"}, {"squeeze": 4}, {"block": "wide"}])
def test_a_network_with_other_parts_is_left_alone(change):
    model = ResNetConfig(widths=(10, 20), depths=(1, 1), **change).build()
    assert pad_channels(model) is model


def test_dropout_comes_before_the_padding_is_cut():
    model = ResNetConfig(widths=(10, 20), depths=(1, 1), dropout=0.5).build()
    torch.manual_seed(0)
    assert pad_channels(model)(torch.randn(4, 3, 16, 16)).shape == (4, 10)
