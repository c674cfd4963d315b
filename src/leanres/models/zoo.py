"""MODELS: every named network with its golden parameter count; configs to and from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.registry import Table, unknown


@dataclass(frozen=True)
class Entry:
    """A named network: `params` is golden, `reported` its source's test accuracy in percent.

    `reported` is the last epoch's figure, None where the source gives none. What this project
    measured is with the recipes (`leanres.training.recipes.PROVENANCE`).
    """

    config: ModelConfig
    params: int
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

HE = "He et al. 2015, arXiv:1512.03385, table 6"
SHAKE = "Gastaldi 2017, arXiv:1705.07485, table 1"
WIDE = "Zagoruyko & Komodakis 2016, arXiv:1605.07146, table 4"
REPORT = "project report"


def _he(blocks: int) -> ResNetConfig:
    """ResNet-(6 blocks + 2) for CIFAR-10, option A shortcuts. He et al. 2015, sec. 4.2."""
    depths = (blocks,) * 3
    return ResNetConfig((16, 32, 64), depths, shortcut="pad", init="kaiming-convs")


def _wide(depth: int, factor: int) -> ResNetConfig:
    """WRN-depth-factor, 6 blocks + 4 = depth. Zagoruyko & Komodakis 2016, table 1."""
    widths = (16 * factor, 32 * factor, 64 * factor)
    depths = ((depth - 4) // 6,) * 3
    return ResNetConfig(widths, depths, stem_width=16, block="wide", init="kaiming-convs")


def _modified(widths: tuple[int, ...], depths: tuple[int, ...], dropout: float) -> ResNetConfig:
    return ResNetConfig(widths, depths, dropout=dropout)


def _budget(widths: tuple[int, ...], depths: tuple[int, ...]) -> ResNetConfig:
    return ResNetConfig(widths, depths, init="kaiming")


RESNET18 = ResNetConfig((64, 128, 256, 512), (2, 2, 2, 2))

MODELS: Table[Entry] = Table(
    "model",
    {
        "speednet": Entry(
            SpeedNetConfig(activation="gelu"),
            1_972_792,
            "this project",
            None,
            "the default; trained for speed",
        ),
        "speednet-5m": Entry(
            SpeedNetConfig((160, 288, 288), depth=3, residual=True, activation="gelu"),
            4_650_168,
            "this project",
            None,
            "for accuracies that speednet does not reach",
        ),
        "modified-resnet-1": Entry(
            _modified((64, 128, 256), (2, 2, 2), 0.7), 2_777_674, REPORT, 90.10
        ),
        "modified-resnet-2": Entry(
            _modified((64, 128, 256), (2, 2, 3), 0.5), 3_958_346, REPORT, 87.76
        ),
        "modified-resnet-3": Entry(
            _modified((64, 128, 256), (2, 2, 3), 0.5),
            3_958_346,
            REPORT,
            89.13,
            "the network of modified-resnet-2, another recipe",
        ),
        "modified-resnet-4": Entry(
            _modified((64, 128, 256, 256), (2, 2, 2, 1), 0.5), 4_024_394, REPORT, 90.58
        ),
        "resnet26-97": Entry(_budget((128, 100, 164, 200), (3, 3, 3, 3)), 4_978_810, REPORT, 97.12),
        "resnet24-9684": Entry(
            _budget((138, 100, 204, 190), (3, 3, 2, 3)),
            4_969_776,
            REPORT,
            96.84,
            "its log ends at 96.82",
        ),
        "resnet24-96": Entry(_budget((136, 100, 188, 204), (3, 3, 2, 3)), 4_997_074, REPORT, 96.57),
        "resnet18": Entry(
            RESNET18, 11_173_962, REPORT, 88.56, "CIFAR stem; reported without a recipe"
        ),
        "resnet18-imagenet-stem": Entry(
            dataclasses.replace(RESNET18, stem="imagenet"),
            11_181_642,
            "He et al. 2015, arXiv:1512.03385, table 1",
            None,
            "the other reading of the resnet18 baseline",
        ),
        "resnet-custom": Entry(
            DavidNetConfig(), 6_573_130, REPORT, 90.53, "as described; assignment target 93"
        ),
        "resnet-custom-as-built": Entry(
            DavidNetConfig(reading="as-built"), 6_573_130, REPORT, 90.53, "as its code ran"
        ),
        "custom-resnet": Entry(BranchNetConfig(), 4_058_122, REPORT, 85.16, "as its code ran"),
        "resnet20": Entry(_he(3), 269_722, HE, 91.25),
        "resnet32": Entry(_he(5), 464_154, HE, 92.49),
        "resnet44": Entry(_he(7), 658_586, HE, 92.83),
        "resnet56": Entry(_he(9), 853_018, HE, 93.03),
        "wrn-16-4": Entry(_wide(16, 4), 2_748_890, WIDE, None, "not in the paper's CIFAR table"),
        "wrn-40-2": Entry(_wide(40, 2), 2_243_546, WIDE, 94.67, "after ZCA whitening"),
        "shake-26-2x32d": Entry(
            ResNetConfig(
                (32, 64, 128),
                (4, 4, 4),
                stem_width=16,
                block="shake",
                shortcut="shift",
                init="kaiming-convs",
            ),
            2_923_162,
            SHAKE,
            96.45,
            "1,800 epochs",
        ),
    },
)


def resolve(name_or_config: str | ModelConfig) -> ModelConfig:
    """The config of a named model, or the one given. An unknown name is a `UserError`."""
    if isinstance(name_or_config, str):
        return MODELS[name_or_config].config
    return name_or_config


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """`config` as JSON has it: its family and every field, tuples as lists."""
    for family, kind in FAMILIES.items():
        if type(config) is kind:
            fields = dataclasses.asdict(config)
            lists = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
            return {"family": family, **lists}
    known = ", ".join(FAMILIES)
    raise UserError(f"{type(config).__name__} is of no model family; there are: {known}")


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The config that `config_to_dict` wrote; fields left out take their defaults.

    Raises `UserError` for an unknown family or field, naming the nearest, and for a bad value.
    """
    fields = dict(values)
    if "family" not in fields:
        raise UserError(f"a model needs a 'family'; there are: {', '.join(FAMILIES)}")
    family = str(fields.pop("family"))
    kind = FAMILIES[family]
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    for name in fields:
        if name not in known:
            raise UserError(unknown(f"{family} setting", name, known))
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:  # a value of a type that the config compares or counts
        raise UserError(f"a {family} setting has a value of the wrong type: {error}") from error
