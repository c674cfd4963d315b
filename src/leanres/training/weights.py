"""Weights files: safetensors that carry the network's shape and its preprocessing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from leanres.models.zoo import config_from_dict, config_to_dict
from leanres.training.checkpoint import CheckpointError, write_bytes
from leanres.version import __version__

KEY = "leanres"


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input, and what its outputs mean."""

    size: int  # pixels a side
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def save_weights(
    path: Path, model: nn.Module, config: Any, preprocess: Preprocess, half: bool = False
) -> None:
    """Write a weights file; `half` stores float16, a quarter of a point or less in accuracy.

    Raises CheckpointError where the disk does not take it.
    """
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).contiguous().cpu()
        for name, t in model.state_dict().items()
    }
    about = {
        "version": __version__,
        "model": config_to_dict(config),
        "preprocess": asdict(preprocess),
    }
    write_bytes(path, tensors_to_bytes(tensors, metadata={KEY: json.dumps(about)}))


def load_weights(path: Path) -> tuple[nn.Module, Any, Preprocess]:
    """The network in eval mode on the CPU as float32, its config and its preprocessing.

    Raises CheckpointError for a file that is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{path} carries no leanres metadata, so its model and preprocessing are unknown: "
            "give a file that leanres wrote"
        )
    return _rebuild(path, about, tensors)


def _rebuild(
    path: Path, about: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[nn.Module, Any, Preprocess]:
    try:
        config = config_from_dict(about["model"])
        fields = about["preprocess"]
        preprocess = Preprocess(
            int(fields["size"]), *(tuple(fields[key]) for key in ("mean", "std", "classes"))
        )
        model: nn.Module = config.build()
        floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        model.load_state_dict(floats)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} does not fit the model it names: {reason}") from None
    return model.eval(), config, preprocess
