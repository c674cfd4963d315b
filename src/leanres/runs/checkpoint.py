"""Checkpoints that survive a kill, a full disk and a flipped bit; exact resume from them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from leanres.errors import first_line
from leanres.io import MIB, CheckpointError, parse_json, read_file, write_bytes
from leanres.training.loop import TrainState

MAX_BYTES = 16_384 * MIB  # of a state
KEEP = 2  # newest checkpoints on disk
STATE, META, MANIFEST = "state.safetensors", "state.json", "manifest.json"


def save(folder: Path, state: TrainState) -> Path:
    """Write `folder/<step>/` beside the older checkpoints, then drop all but the newest two.

    Older ones stay until the new one is complete: on CheckpointError (a full disk) they are
    unchanged.
    """
    target = folder / f"{state.step:08d}"
    partial = folder / f".{target.name}.partial"
    for stale in folder.glob(".*.partial"):  # of a save that was killed
        shutil.rmtree(stale, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_files(partial, state)
        shutil.rmtree(target, ignore_errors=True)  # the same step again: it holds the same
        partial.rename(target)
        _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # renamed already where all went well
    # Newer ones are what a resume skipped: damaged, or of a longer run than this one.
    newer = [path for path in saved(folder) if int(path.name) > state.step]
    for old in newer + saved(folder)[len(newer) + KEEP :]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write_files(folder: Path, state: TrainState) -> None:
    tensors, meta = pack(state)
    contents = {
        STATE: tensors_to_bytes({name: t.contiguous().cpu() for name, t in tensors.items()}),
        META: json.dumps(meta).encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[MANIFEST] = json.dumps({"step": state.step, "sha256": digests}, indent=1).encode()
    for name, content in contents.items():
        write_bytes(folder / name, content)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def saved(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    named = (p for p in folder.glob("[0-9]*") if p.name.isdecimal() and p.is_dir())
    return sorted(named, key=lambda p: int(p.name), reverse=True)


def restore_(folder: Path, state: TrainState) -> list[str]:
    """Restore `state` from the newest intact checkpoint of `folder`.

    Returns one line for each that was skipped, damaged or of another model. CheckpointError where
    none is left.
    """
    notes: list[str] = []
    for path in saved(folder):
        try:
            unpack_(state, *_read(path), path)
        except CheckpointError as error:
            notes.append(str(error))
            continue
        return [f"{note}; using step {state.step}" for note in notes]
    raise CheckpointError("; ".join(notes) or f"no checkpoint in {folder}: nothing to resume")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        digests = parse_json(read_file(path / MANIFEST))["sha256"]
        contents = {name: read_file(path / name, MAX_BYTES) for name in (STATE, META)}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise ValueError(f"the sha256 of {name} is not the manifest's")
        return load_tensors(contents[STATE]), parse_json(contents[META])
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None


def pack(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as named tensors and JSON; `unpack_` is its inverse."""
    tensors: dict[str, Tensor] = {}
    for part, network in _networks(state).items():
        tensors |= {f"{part}.{name}": t for name, t in network.state_dict().items()}
    plain = [optimizer.state_dict() for optimizer in state.optimizers]
    scalars: list[dict[int, dict[str, Any]]] = [{} for _ in plain]
    for i, optimizer in enumerate(plain):
        for p, entries in optimizer["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{p}.{key}"] = value
                else:
                    scalars[i].setdefault(p, {})[key] = value
    if state.losses:
        tensors |= {"running.losses": torch.stack(state.losses)}
        tensors |= {"running.correct": torch.stack(state.correct)}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    groups = [optimizer["param_groups"] for optimizer in plain]
    meta = {"step": state.step, "history": state.history, "groups": groups, "scalars": scalars}
    return tensors, json.loads(json.dumps(meta))


def _networks(state: TrainState) -> dict[str, nn.Module]:
    networks = {"model": state.model, "ema": state.ema, "selector": state.selector}
    return {part: network for part, network in networks.items() if network is not None}


def unpack_(
    state: TrainState, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path
) -> None:
    """Set `state` to what `pack` gave; CheckpointError where it is of another model or recipe."""
    try:
        for part, network in _networks(state).items():
            network.load_state_dict(_below(f"{part}.", tensors))
        for i, optimizer in enumerate(state.optimizers):
            _load_optimizer_(optimizer, _below(f"optimizer.{i}.", tensors), meta, i)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        _, _, differing = str(error).partition("loading state_dict for")
        _, _, first = differing.partition("\n\t")  # torch lists what differs below a headline
        reason = first.splitlines()[0].rstrip(". ") if first else first_line(error)
        raise CheckpointError(f"{path} is of another model or optimizer: {reason}") from None
    state.step, state.history = meta["step"], meta["history"]
    device = next(state.model.parameters()).device
    for name in ("losses", "correct"):
        values = tensors.get(f"running.{name}", torch.empty(0))
        setattr(state, name, list(values.to(device).unbind()))
    state.best = {name: tensor.to(device) for name, tensor in _below("best.", tensors).items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _load_optimizer_(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict[str, Any], i: int
) -> None:
    entries: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        p, key = name.split(".", 1)
        entries.setdefault(int(p), {})[key] = tensor
    for p, scalars in meta["scalars"][i].items():
        entries.setdefault(int(p), {}).update(scalars)
    optimizer.load_state_dict({"state": entries, "param_groups": meta["groups"][i]})
    for group in optimizer.param_groups:
        for p in group["params"]:
            _match_layout_(p, optimizer.state.get(p, {}))


def _match_layout_(p: Tensor, entries: dict[str, Any]) -> None:
    # Files store no strides. A buffer in another layout than its parameter's would be summed in
    # another order, and the resumed run would differ in the last bit.
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.shape == p.shape:
            entries[key] = torch.empty_like(p).copy_(value)
