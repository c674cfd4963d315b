"""MODELS: every named network with its exact parameter count; configs to and from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from leanres import plugins
from leanres.errors import UserError
from leanres.models.config import FACTORIES, FactoryConfig, ModelConfig
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.registry import Table, unknown


@dataclass(frozen=True)
class NamedModel:
    """A named network: its exact parameter count, and its source's test accuracy in percent.

    `reported` is the accuracy after the last epoch, None if the source gives none. This project's
    own measurements are in `leanres.training.recipes.NAMED_RECIPES`.
    """

    config: ModelConfig
    params: int | None  # None: not counted yet
    source: str
    reported: float | None
    note: str = ""


FAMILIES: Table[Callable[..., ModelConfig]] = Table(
    "model family",
    {
        "resnet": ResNetConfig,
        "davidnet": DavidNetConfig,
        "branchnet": BranchNetConfig,
        "speednet": SpeedNetConfig,
    },
)

HE_2015 = "He et al. 2015, arXiv:1512.03385, table 6"
GASTALDI_2017 = "Gastaldi 2017, arXiv:1705.07485, table 1"
ZAGORUYKO_2016 = "Zagoruyko & Komodakis 2016, arXiv:1605.07146, table 4"
REPORT = "project report"
OURS = "this project"
FACTORY = "factory"  # the family of networks that come from a function of the user's
PLUGIN = "plugin"

Stages = tuple[int, ...]  # one value per stage


def _he_resnet(blocks: int) -> ResNetConfig:
    """ResNet-(6 blocks + 2) for CIFAR-10, option A shortcuts. He et al. 2015, sec. 4.2."""
    depths = (blocks,) * 3
    return ResNetConfig((16, 32, 64), depths, shortcut="pad", init="kaiming-convs")


def _wide_resnet(depth: int, factor: int) -> ResNetConfig:
    """WRN-depth-factor, 6 blocks + 4 = depth. Zagoruyko & Komodakis 2016, table 1."""
    widths = (16 * factor, 32 * factor, 64 * factor)
    depths = ((depth - 4) // 6,) * 3
    return ResNetConfig(widths, depths, stem_width=16, block="wide", init="kaiming-convs")


def _reported(
    params: int, accuracy: float, widths: Stages, depths: Stages, note: str = "", **settings: Any
) -> NamedModel:
    """A ResNet of the project report, with the accuracy given there."""
    return NamedModel(ResNetConfig(widths, depths, **settings), params, REPORT, accuracy, note)


RESNET18 = ResNetConfig((64, 128, 256, 512), (2, 2, 2, 2))
SPEEDNET = SpeedNetConfig(activation="gelu")
SPEEDNET_5M = dataclasses.replace(SPEEDNET, widths=(160, 288, 288), depth=3, residual=True)
SHAKE_26 = ResNetConfig(
    (32, 64, 128), (4, 4, 4), 16, block="shake", shortcut="shift", init="kaiming-convs"
)


def is_config(value: object) -> bool:
    """Whether this is the config of a network."""
    return type(value) in (*FAMILIES.values(), FactoryConfig)


def _entry(name: str, value: Any) -> NamedModel:
    """The entry of a network that is added: a function, a class or a config makes one."""
    if isinstance(value, NamedModel):
        return value
    if is_config(value):
        return NamedModel(value, None, PLUGIN, None)
    if isinstance(value, nn.Module) or not callable(value):
        came = type(value).__name__
        raise UserError(
            f"model {name!r} is a {came}: give the function or class that makes a network from"
            " (num_classes, in_channels)"
        )
    if not plugins.is_reference(name):
        plugins.remember_module_of(value)
        FACTORIES[name] = value
    return NamedModel(FactoryConfig(name), None, PLUGIN, None)


MODELS: Table[NamedModel] = Table(
    "model",
    {
        "speednet": NamedModel(SPEEDNET, 1_972_792, OURS, None, "the default; trained for speed"),
        "speednet-5m": NamedModel(
            SPEEDNET_5M, 4_650_168, OURS, None, "for accuracies that speednet does not reach"
        ),
        "modified-resnet-1": _reported(2_777_674, 90.10, (64, 128, 256), (2, 2, 2), dropout=0.7),
        "modified-resnet-2": _reported(3_958_346, 87.76, (64, 128, 256), (2, 2, 3), dropout=0.5),
        "modified-resnet-3": _reported(
            3_958_346,
            89.13,
            (64, 128, 256),
            (2, 2, 3),
            "the network of modified-resnet-2, another recipe",
            dropout=0.5,
        ),
        "modified-resnet-4": _reported(
            4_024_394, 90.58, (64, 128, 256, 256), (2, 2, 2, 1), dropout=0.5
        ),
        "resnet26-97": _reported(
            4_978_810, 97.12, (128, 100, 164, 200), (3, 3, 3, 3), init="kaiming"
        ),
        "resnet24-9684": _reported(
            4_969_776,
            96.84,
            (138, 100, 204, 190),
            (3, 3, 2, 3),
            "its log ends at 96.82",
            init="kaiming",
        ),
        "resnet24-96": _reported(
            4_997_074, 96.57, (136, 100, 188, 204), (3, 3, 2, 3), init="kaiming"
        ),
        "resnet18": NamedModel(
            RESNET18, 11_173_962, REPORT, 88.56, "CIFAR stem; reported without a recipe"
        ),
        "resnet18-imagenet-stem": NamedModel(
            dataclasses.replace(RESNET18, stem="imagenet"),
            11_181_642,
            "He et al. 2015, arXiv:1512.03385, table 1",
            None,
            "the other reading of the resnet18 baseline",
        ),
        "resnet-custom": NamedModel(
            DavidNetConfig(), 6_573_130, REPORT, 90.53, "as described; assignment target 93"
        ),
        "resnet-custom-as-built": NamedModel(
            DavidNetConfig(reading="as-built"), 6_573_130, REPORT, 90.53, "as its code ran"
        ),
        "custom-resnet": NamedModel(BranchNetConfig(), 4_058_122, REPORT, 85.16, "as its code ran"),
        "resnet20": NamedModel(_he_resnet(3), 269_722, HE_2015, 91.25),
        "resnet32": NamedModel(_he_resnet(5), 464_154, HE_2015, 92.49),
        "resnet44": NamedModel(_he_resnet(7), 658_586, HE_2015, 92.83),
        "resnet56": NamedModel(_he_resnet(9), 853_018, HE_2015, 93.03),
        "wrn-16-4": NamedModel(
            _wide_resnet(16, 4), 2_748_890, ZAGORUYKO_2016, None, "not in the paper's CIFAR table"
        ),
        "wrn-40-2": NamedModel(
            _wide_resnet(40, 2), 2_243_546, ZAGORUYKO_2016, 94.67, "after ZCA whitening"
        ),
        "shake-26-2x32d": NamedModel(SHAKE_26, 2_923_162, GASTALDI_2017, 96.45, "1,800 epochs"),
    },
    _entry,
)


def resolve(name_or_config: str | ModelConfig) -> ModelConfig:
    """The config of a named model; a config is returned as it is. UserError for an unknown name."""
    if isinstance(name_or_config, str):
        return MODELS[name_or_config].config
    return name_or_config


def fitted(config: ModelConfig, num_classes: int, in_channels: int) -> ModelConfig:
    """The same network for data of `num_classes` classes in images of `in_channels` channels."""
    return dataclasses.replace(config, num_classes=num_classes, in_channels=in_channels)


def network_name(model: str | ModelConfig | Mapping[str, Any]) -> str:
    """The name of a named model, else its family: "custom resnet"."""
    if isinstance(model, str):
        return model
    values = model if isinstance(model, Mapping) else config_to_dict(model)
    return str(values["factory"]) if "factory" in values else f"custom {values['family']}"


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """`config` as JSON-able values: its family and every field, tuples as lists."""
    for family, kind in {**FAMILIES, FACTORY: FactoryConfig}.items():
        if type(config) is kind:
            fields = dataclasses.asdict(config).items()
            return {"family": family} | {k: list(v) if type(v) is tuple else v for k, v in fields}
    known = ", ".join(FAMILIES)
    raise UserError(f"{type(config).__name__} belongs to no model family; there are: {known}")


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The config of a dict as `config_to_dict` returns it; missing fields have their defaults.

    Raises `UserError` for an unknown family or field, naming the nearest, and for a bad value.
    """
    fields = dict(values)
    if "family" not in fields:
        raise UserError(f"a model needs a 'family'; there are: {', '.join(FAMILIES)}")
    family = str(fields.pop("family"))
    kind: Callable[..., ModelConfig] = FactoryConfig if family == FACTORY else FAMILIES[family]
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    for name in fields:
        if name not in known:
            raise UserError(unknown(f"{family} setting", name, known))
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:  # the config compares or counts a value of the wrong type
        raise UserError(f"a {family} setting has a value of the wrong type: {error}") from error
