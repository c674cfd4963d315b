"""Checkpoints that survive a kill, a full disk and a flipped bit; exact resume from them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from leanres.io import CheckpointError, write_bytes
from leanres.training.loop import TrainState

KEEP = 2  # newest checkpoints on disk
STATE, META, MANIFEST = "state.safetensors", "state.json", "manifest.json"


def save(folder: Path, state: TrainState) -> Path:
    """Write `folder/<step>/` beside the older checkpoints, then drop all but the newest two.

    Nothing older is touched before the new one is complete: on CheckpointError (a full disk)
    they are as they were.
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
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from error
    except CheckpointError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
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
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir()), reverse=True)


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
    digests = _parse(path / MANIFEST, _content(path / MANIFEST)).get("sha256")
    if not isinstance(digests, dict):
        raise CheckpointError(f"{path / MANIFEST} is damaged: it lists no sha256")
    contents = {name: _content(path / name) for name in (STATE, META)}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != digests.get(name):
            raise CheckpointError(f"{path / name} is damaged: its sha256 is not the manifest's")
    try:
        tensors = load_tensors(contents[STATE])
    except SafetensorError as error:
        raise CheckpointError(f"{path / STATE} is damaged: {error}") from None
    return tensors, _parse(path / META, contents[META])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object")
    return parsed


def pack(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as named tensors and JSON; `unpack_` is its inverse."""
    tensors = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    for part, network in (("ema", state.ema), ("selector", state.selector)):
        if network is not None:
            tensors |= {f"{part}.{name}": t for name, t in network.state_dict().items()}
    groups: list[Any] = []
    scalars: list[dict[str, dict[str, Any]]] = []
    for i, optimizer in enumerate(state.optimizers):
        plain = optimizer.state_dict()
        groups.append(plain["param_groups"])
        scalars.append({})
        for p, key, value in _entries(plain["state"]):
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{p}.{key}"] = value
            else:
                scalars[i].setdefault(str(p), {})[key] = value
    if state.losses:
        tensors |= {"running.losses": torch.stack(state.losses)}
        tensors |= {"running.correct": torch.stack(state.correct)}
    meta = {"step": state.step, "history": state.history, "groups": groups, "scalars": scalars}
    return tensors, json.loads(json.dumps(meta))


def _entries(state: dict[int, dict[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    for p, entries in state.items():
        for key, value in entries.items():
            yield p, key, value


def unpack_(
    state: TrainState, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path
) -> None:
    """Set `state` to what `pack` gave; CheckpointError where it is of another model or recipe."""
    try:
        state.model.load_state_dict(_below("model.", tensors))
        for part, network in (("ema", state.ema), ("selector", state.selector)):
            if network is not None:
                network.load_state_dict(_below(f"{part}.", tensors))
        for i, optimizer in enumerate(state.optimizers):
            _load_optimizer_(optimizer, _below(f"optimizer.{i}.", tensors), meta, i)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is of another model or optimizer: {reason}") from None
    state.step, state.history = meta["step"], meta["history"]
    device = next(state.model.parameters()).device
    state.losses = list(tensors.get("running.losses", torch.empty(0)).to(device).unbind())
    state.correct = list(tensors.get("running.correct", torch.empty(0)).to(device).unbind())


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
