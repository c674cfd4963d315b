"""Grad-CAM against a second, differently written computation, and against the grad-cam package."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from leanres.errors import UserError
from leanres.metrics.gradcam import METHODS, explain, invalid_map_reasons, map_layers, usual_layers
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = SpeedNetConfig((8, 16, 16)).build().eval()
    nn.init.normal_(model.head.weight)
    for name, buffer in model.named_buffers():  # not the fresh norm's 0 and 1
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([3, 0, 9, 1, 3])


def by_hand(rest, maps: torch.Tensor, label: int, method: str) -> np.ndarray:
    """One image's map (h, w) from `rest`, a function of the layer's maps (C, h, w) to logits.

    The gradient comes from torch.func in float64, all else from loops over channels in numpy.
    """
    slope = torch.func.grad(lambda m: rest(m[None])[0, label])(maps.double())
    slope = slope.detach().numpy()
    values = maps.double().numpy()
    total = np.zeros(values.shape[1:])
    for channel in range(len(values)):
        a, g = values[channel], slope[channel]
        if method == "Grad-CAM":
            weight = g.sum() / g.size
        else:
            weight = 0.0
            for y, x in np.ndindex(*g.shape):
                bottom = 2 * g[y, x] ** 2 + a.sum() * g[y, x] ** 3
                share = g[y, x] ** 2 / bottom if bottom else 0.0
                weight += share * max(g[y, x], 0.0)
        total += weight * a
    return np.maximum(total, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_maps_equal_an_independent_computation(network, images, method, stage):
    found = explain(network, images, f"stages.{stage}", CLASSES, method)
    twin = SpeedNetConfig((8, 16, 16)).build().eval()
    twin.load_state_dict(network.state_dict())
    twin.double()

    def rest(maps: torch.Tensor) -> torch.Tensor:
        maps = maps.clone()
        for later in twin.stages[stage + 1 :]:
            maps = later(maps)
        return twin.head(maps.amax((2, 3)))

    for place, label in enumerate(CLASSES.tolist()):
        with torch.no_grad():
            maps = network.stages[: stage + 1](network.stem_act(network.stem(images[[place]])))[0]
        expected = by_hand(rest, maps, label, method)
        scale = max(expected.max(), 1e-6)
        np.testing.assert_allclose(found[place].numpy() / scale, expected / scale, atol=2e-4)


def test_a_layer_that_the_next_one_overwrites_is_read_before_that(network, images):
    # the stem's output is overwritten by an in-place ReLU
    found = explain(network, images, "stem", CLASSES)
    maps = nn.functional.conv2d(images, network.stem.weight, network.stem.bias)
    assert (maps < 0).any()
    maps = maps.detach().requires_grad_()
    logits = network.head(network.pool(network.stages(maps.relu())).flatten(1))
    logits[torch.arange(5), CLASSES].sum().backward()
    expected = (maps.grad.mean((2, 3))[..., None, None] * maps.detach()).sum(1).relu()
    assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "name"), [("Grad-CAM", "GradCAM"), ("Grad-CAM++", "GradCAMPlusPlus")]
)
def test_maps_equal_those_of_the_grad_cam_package(images, method, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip(
            "pytorch_grad_cam",
            reason="the grad-cam package (and torchvision) is not importable here",
            exc_type=ImportError,
        )
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    torch.manual_seed(0)
    model = ResNetConfig((8, 16), (1, 1)).build().eval()
    with torch.no_grad():
        [m for m in model.modules() if isinstance(m, nn.Linear)][
            -1
        ].weight *= 1e4  # the package adds 1e-6 to Grad-CAM++'s squared gradients
    # After a ReLU, where Grad-CAM++'s shares have no pole; at the input's size: nothing is resized.
    layer = "stages.0"
    assert map_layers(model, images)[layer] == (32, 32)
    ours = explain(model, images, layer, CLASSES, method)
    targets = [ClassifierOutputTarget(label) for label in CLASSES.tolist()]
    with getattr(package, name)(model, [model.get_submodule(layer)]) as cam:
        theirs = cam(input_tensor=images, targets=targets)
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    scaled = (ours - low) / (high - low + 1e-12)
    assert (ours > 0).any()
    np.testing.assert_allclose(scaled.numpy(), theirs, atol=2e-4)


def test_the_network_is_left_unchanged(network, images):
    network.train()
    network.stages[0].eval()
    modes = [m.training for m in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = images.clone()
    explain(network, images, "stages.1", CLASSES, "Grad-CAM++")
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(images, kept)
    assert not images.requires_grad


def test_no_hooks_and_no_tensors_remain_after_100_images(network):
    many = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(100) % 10

    def census() -> tuple[int, int]:
        gc.collect()
        hooks = sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in network.modules()
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some objects warn of deprecation on access
            tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        return hooks, sum(t.numel() for t in tensors)

    explain(network, many, "stages.2", classes)  # caches are filled now
    before = census()
    for method in METHODS:
        found = explain(network, many, "stages.2", classes, method)
        assert not found.requires_grad
        del found
    assert census() == before
    assert before[0] == 0


def test_frozen_weights_can_be_explained_and_batches_do_not_matter(network, images, monkeypatch):
    whole = explain(network, images, "stages.2", CLASSES)
    network.requires_grad_(False)
    monkeypatch.setattr("leanres.metrics.gradcam.BATCH_SIZE", 2)
    assert torch.allclose(explain(network, images, "stages.2", CLASSES), whole, atol=1e-6)


def test_an_unknown_layer_gets_the_list_and_a_hook_never_stays(network, images):
    for name in ("stages.9", "head", ""):
        with pytest.raises(UserError, match=r"there are: .*stages\.0.*stem"):
            explain(network, images, name, CLASSES)
    with pytest.raises(UserError, match=r"did you mean .stages\.2\.conv1."):
        explain(network, images, "stages.2.convv1", CLASSES)
    with pytest.raises(UserError, match="no Grad-CAM method 'Grad'"):
        explain(network, images, "stem", CLASSES, "Grad")
    assert not any(m._forward_hooks for m in network.modules())


def test_layers_are_listed_with_their_sizes_in_execution_order(network, images):
    sizes = map_layers(network, images)
    assert next(iter(sizes)) == "stem"
    assert (sizes["stem"], sizes["stages.0"], sizes["stages.2"]) == ((31, 31), (15, 15), (3, 3))
    assert "pool" not in sizes
    assert "head" not in sizes
    chosen = usual_layers(sizes)
    assert [sizes[name] for name in chosen] == [(7, 7), (3, 3)]
    assert usual_layers({}) == []


def test_blank_maps_and_nan_are_named():
    maps = torch.zeros(4, 3, 3)
    maps[1, 0, 0], maps[2, 1, 1], maps[3, 2, 2] = 1.0, float("nan"), float("inf")
    assert invalid_map_reasons(maps) == ["blank", "", "not finite", "not finite"]


def test_a_class_without_support_gives_a_blank_map(network, images):
    with torch.no_grad():
        network.head.weight[4] = 0.0
    maps = explain(network, images, "stages.2", torch.full((5,), 4))
    assert invalid_map_reasons(maps) == ["blank"] * 5
