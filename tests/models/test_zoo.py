"""Every named model has its stated cost, trains in every mode, and survives JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch

from leanres.errors import UserError
from leanres.models.cost import count_params
from leanres.models.resnet import ResNetConfig
from leanres.models.zoo import (
    FAMILIES,
    MODELS,
    config_from_dict,
    config_to_dict,
    network_name,
    resolve,
)

GOLDEN = {  # counts of the documents and of common implementations of the papers
    "modified-resnet-1": 2_777_674,
    "modified-resnet-2": 3_958_346,
    "modified-resnet-3": 3_958_346,
    "modified-resnet-4": 4_024_394,
    "resnet26-97": 4_978_810,
    "resnet24-9684": 4_969_776,
    "resnet24-96": 4_997_074,
    "resnet18": 11_173_962,
    "resnet18-imagenet-stem": 11_181_642,
    "resnet-custom": 6_573_130,
    "resnet-custom-as-built": 6_573_130,
    "custom-resnet": 4_058_122,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "wrn-16-4": 2_748_890,
    "wrn-40-2": 2_243_546,
    "shake-26-2x32d": 2_923_162,
}
SHAPES = ("speednet", "resnet18-imagenet-stem", "resnet-custom", "custom-resnet", "resnet20")
SHAPES += (
    "wrn-16-4",
    "modified-resnet-1",
    "shake-26-2x32d",
)  # together they contain every kind of layer


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_has_the_parameters_that_its_entry_states(name):
    assert count_params(MODELS[name].config) == MODELS[name].params


@pytest.mark.parametrize("name", GOLDEN)
def test_the_entries_state_the_published_counts(name):
    assert MODELS[name].params == GOLDEN[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_names_its_source_and_a_plausible_score(name):
    entry = MODELS[name]
    assert entry.source
    assert entry.reported is None or 80 < entry.reported < 100


def test_the_depth_in_a_name_is_two_layers_per_block_and_two_more():
    for name, depth in (("resnet18", 18), ("resnet20", 20), ("resnet56", 56)):
        assert 2 * sum(MODELS[name].config.depths) + 2 == depth
    assert 2 * sum(MODELS["resnet26-97"].config.depths) + 2 == 26
    assert 2 * sum(MODELS["resnet24-96"].config.depths) + 2 == 24
    assert 2 * sum(MODELS["wrn-40-2"].config.depths) + 4 == 40


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_survives_json(name):
    config = MODELS[name].config
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_takes_another_number_of_classes(name):
    with torch.device("meta"):
        model = replace(MODELS[name].config, num_classes=7).build()
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_is_frozen_and_its_weights_depend_on_the_seed_alone(name):
    config = MODELS[name].config
    with pytest.raises(FrozenInstanceError):
        config.num_classes = 3
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(torch.cat([p.detach().flatten() for p in thin(config).parameters()]))
    assert torch.equal(*weights)


def thin(config):
    widths = tuple(range(4, 4 + 2 * len(config.widths), 2))
    return replace(config, widths=widths).build()


@pytest.mark.parametrize("name", SHAPES)
def test_channels_last_gives_the_same_logits(name):
    torch.manual_seed(0)
    model, images = thin(MODELS[name].config).eval(), torch.rand(2, 3, 32, 32)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    logits = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_autocast_trains_every_weight(name):
    torch.manual_seed(0)
    model = thin(MODELS[name].config).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last))
    assert logits.dtype == torch.bfloat16
    torch.nn.functional.cross_entropy(logits.float(), torch.arange(16) % 10).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("name", SHAPES)
def test_torch_compile_captures_one_graph(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, images = thin(MODELS[name].config).eval(), torch.rand(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


def test_a_name_and_a_config_resolve_to_a_config():
    config = ResNetConfig((4,), (1,))
    assert resolve(config) is config
    assert resolve("resnet20") is MODELS["resnet20"].config


def test_a_network_without_a_name_is_called_after_its_family():
    config = ResNetConfig((4,), (1,))
    assert network_name("resnet20") == "resnet20"
    assert network_name(config) == network_name(config_to_dict(config)) == "custom resnet"


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="no model 'resnet26-79'; did you mean 'resnet26-97'"):
        resolve("resnet26-79")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a model needs a 'family'; there are: resnet"),
        ({"family": "resnt"}, "no model family 'resnt'; did you mean 'resnet'?"),
        ({"family": "resnet", "width": [4]}, "no resnet setting 'width'; did you mean 'widths'?"),
        ({"family": "resnet", "widths": [4], "depths": []}, "1 widths but 0 depths"),
        ({"family": "davidnet", "widths": None}, "widths = None: give four whole numbers"),
        ({"family": "speednet", "widths": 3}, "widths = 3: give a list of whole numbers"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        config_from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_gives_its_defaults(family):
    assert config_from_dict({"family": family}) == FAMILIES[family]()


def test_a_config_without_a_family_is_refused():
    @dataclass(frozen=True)
    class Stranger:
        num_classes: int = 10

    with pytest.raises(UserError, match="Stranger belongs to no model family"):
        config_to_dict(Stranger())
