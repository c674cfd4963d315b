"""Weights files: safetensors that carry the network's shape, its preprocessing and a precision.

The precision is the one in which the network's figures were measured; a file that names none was
measured in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from leanres.data.split import Split
from leanres.errors import UserError, first_line
from leanres.io import MIB, CheckpointError, open_data, parse_json, write_bytes
from leanres.metrics.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from leanres.models.config import FactoryConfig
from leanres.models.preprocess import ImageClassifier, Preprocess
from leanres.models.zoo import config_from_dict, config_to_dict
from leanres.plugins import NotLoadedError
from leanres.registry import Range, checked
from leanres.runs.run_json import INFO, not_a_run
from leanres.training.device import PRECISIONS, Device
from leanres.training.finetune import Pretrained
from leanres.version import __version__

WEIGHTS = "model.safetensors"  # of a run folder
KEY = "leanres"
TEMPERATURE = Annotated[float, Range(MIN_TEMPERATURE, MAX_TEMPERATURE)]
MAX_BYTES, MAX_HEADER = 4096 * MIB, 16 * MIB  # of a file, and of its names, shapes and metadata


def save_weights(
    path: Path,
    model: nn.Module,
    config: Any,
    preprocess: Preprocess,
    half: bool = False,
    precision: str = "float32",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a weights file. CheckpointError where it cannot be written; else as `weights_bytes`."""
    write_bytes(path, weights_bytes(model, config, preprocess, half, precision, facts))


def weights_bytes(
    model: nn.Module,
    config: Any,
    preprocess: Preprocess,
    half: bool = False,
    precision: str = "float32",
    facts: Mapping[str, Any] | None = None,
) -> bytes:
    """A weights file's content; `half` stores float16, a quarter of a point or less in accuracy.

    `facts` are more entries of its metadata: `temperature`, and what `ship` says of the file.
    UserError for weights that are not finite, or whose float16 are not.
    """
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).contiguous().cpu()
        for name, t in model.state_dict().items()
    }
    about = {
        "version": __version__,
        "model": config_to_dict(config),
        "preprocess": asdict(preprocess),
        "precision": precision,
        **(facts or {}),
    }
    _check_finite(tensors)
    about["sha256"] = _checksum(tensors, about)
    return tensors_to_bytes(tensors, metadata={KEY: json.dumps(about)})


def _checksum(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """sha256 over the metadata, and over the name, type, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} is not finite: weights with NaN or Inf predict nothing")


@torch.no_grad()
def round_to_int8_(model: nn.Module) -> None:
    """Round convolutions and Linears to 255 levels, symmetric, one scale per output channel.

    Weights stay floats: the values that int8 storage would restore. Biases and norms are kept.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            largest = module.weight.flatten(1).abs().amax(1).clamp(min=1e-12)
            zeros = torch.zeros_like(largest, dtype=torch.int32)
            rounded = torch.fake_quantize_per_channel_affine(
                module.weight, largest / 127, zeros, 0, -127, 127
            )
            module.weight.copy_(rounded)


def weights_file(target: str | Path) -> Path:
    """The weights of a run folder, or the file itself. UserError where there is none."""
    path = Path(target)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run folder or a .safetensors file")
    if (path / "fold-1").is_dir():
        raise UserError(not_a_run(path))
    if path.is_dir() and not (path / WEIGHTS).exists():
        if not (path / INFO).exists():
            raise UserError(f"{path} holds no network: give a run folder or a .safetensors file")
        raise UserError(
            f"{path} holds no {WEIGHTS}: a run writes it when it ends (`leanres resume {path}`)"
        )
    return path / WEIGHTS if path.is_dir() else path


def load_classifier(path: Path) -> tuple[ImageClassifier, Any]:
    """The network with its normalisation, in eval mode on the CPU as float32, and its config.

    Raises CheckpointError for a file that is missing, damaged, or not one of ours.
    """
    with _named(path):
        about, tensors = _read(path)
        _check_finite(tensors)
        return _rebuild(about, tensors)


def read_facts(path: Path) -> dict[str, Any]:
    """The metadata of a weights file. Raises as `load_classifier`."""
    with _named(path):
        return _read(path)[0]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file in front of what does not fit in it, as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except NotLoadedError as error:
        raise NotLoadedError(f"{path}: {error}") from None
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} does not fit the model it names: {reason}") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a weights file whose checksum is right."""
    try:
        with open_data(path, MAX_BYTES) as raw:
            if int.from_bytes(raw.read(8), "little") > MAX_HEADER:
                raise ValueError("its header is too long")
        with safe_open(path, "pt") as file:
            about = parse_json((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {first_line(error)}") from None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{path} carries no leanres metadata, so its model and preprocessing are unknown: "
            "give a file that leanres wrote"
        )
    if about.pop("sha256", None) != _checksum(tensors, about):
        raise CheckpointError(f"{path} is damaged: its content is not what its sha256 says")
    return about, tensors


def load_teacher(path: str, train: Split, device: Device) -> ImageClassifier:
    """The network of a run folder or weights file. UserError for other classes or images."""
    try:
        teacher = load_classifier(weights_file(path))[0]
    except UserError as error:
        raise UserError(f"teacher = {path!r}: {error}") from None
    known, size = teacher.preprocess, train.images.shape[-1]
    if (known.classes, known.size, known.channels) != (train.classes, size, train.channels):
        theirs = f"{', '.join(known.classes)} in images of {known.channels}x{known.size} px"
        own = f"{', '.join(train.classes)} in images of {train.channels}x{size} px"
        raise UserError(
            f"teacher = {path!r} knows {theirs}, the data has {own}: give one that was trained on"
            " this data"
        )
    placed: ImageClassifier = device.place(teacher)  # type: ignore[assignment]
    placed.model = device.accelerate(placed.model)
    return placed


def load_pretrained(path: str) -> Pretrained:
    """The weights of the run folder or weights file that `init` names. UserError otherwise."""
    try:
        known, config = load_classifier(weights_file(path))
    except UserError as error:
        raise UserError(f"init = {path!r}: {error}") from None
    return Pretrained(config, known.model.state_dict(), known.preprocess)


def _rebuild(
    about: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[ImageClassifier, Any]:
    config, preprocess = config_from_dict(about["model"]), Preprocess(**about["preprocess"])
    if (precision := about.get("precision", "float32")) not in PRECISIONS[1:]:
        raise ValueError(f"its precision is {str(precision)[:60]!r}")
    temperature = checked("temperature", about.get("temperature", 1.0), TEMPERATURE)
    if len(preprocess.classes) != config.num_classes:
        raise ValueError("it names another number of classes than the network has")
    if preprocess.channels != config.in_channels:
        raise ValueError("it normalises another number of channels than the network has")
    # On the meta device, without memory: a file may name any network. A user's own is not built
    # there, as it may have buffers that no file holds.
    with nullcontext() if isinstance(config, FactoryConfig) else torch.device("meta"):
        model: nn.Module = config.build()
    wanted = model.state_dict()
    shapes, own = ({n: t.shape for n, t in of.items()} for of in (wanted, tensors))
    if differing := sorted(n for n in shapes | own if shapes.get(n) != own.get(n)):
        changed = f"; {config.factory} has changed" if isinstance(config, FactoryConfig) else ""
        count = len(differing)
        raise ValueError(f"{count} of its tensors differ, such as {differing[0]}{changed}")
    copies = {n: t.to(wanted[n].dtype, copy=True) for n, t in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return ImageClassifier(model, preprocess, precision, temperature).eval(), config
