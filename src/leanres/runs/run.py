"""Run: a run folder made or reopened, with its training in memory."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from leanres import plugins
from leanres.data.folds import in_fold
from leanres.data.sources import origin_of
from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError
from leanres.io import CheckpointError, Lock, file_digest, remove_partial
from leanres.models.config import ModelConfig
from leanres.models.preprocess import Normalize, Preprocess
from leanres.models.zoo import config_to_dict
from leanres.runs import checkpoint
from leanres.runs.images import as_trained, check_data, images_table
from leanres.runs.layout import (
    CHECKPOINTS,
    HISTORY,
    IMAGES,
    TABLE,
    TIMES,
    check_free,
    clear,
    commit,
    csv_table,
    exactness_notes,
    fingerprints,
    json_lines,
    read_times,
    with_times,
)
from leanres.runs.manifest import edited, write_files
from leanres.runs.run_json import INFO, is_queued, read_info, recipe_as_started
from leanres.runs.weights import MAX_BYTES, load_pretrained, load_teacher, weights_file
from leanres.training.device import Device, detect, hardware
from leanres.training.distributed import ALONE, World
from leanres.training.early_stopping import check_val, stopped_early
from leanres.training.finetune import Pretrained, fitting
from leanres.training.loop import MetricsRow, TrainState, network_config, start
from leanres.training.preflight import preflight_check
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup
from leanres.version import __version__


@dataclass
class Run:
    """A run folder with its training in memory. Made by `create` or `reopen`."""

    folder: Path
    setup: Setup
    dataset: Dataset
    val: Split | None
    state: TrainState
    preprocess: Preprocess
    config: ModelConfig  # the network's shape
    info: dict[str, Any] = field(default_factory=dict)  # the content of run.json
    notes: list[str] = field(default_factory=list)
    times: list[MetricsRow] = field(default_factory=list)  # seconds and images/s per epoch
    carried_s: float = 0.0  # spent on the running epoch before a stop
    lock: Lock | None = None
    writes: bool = True  # of several processes one alone does

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.state.is_finished(self.setup.counts)

    def release(self) -> None:
        """Release the lock on the folder."""
        if self.lock is not None:
            self.lock.release()


def create(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    origin: dict[str, Any] | None = None,
    world: World = ALONE,
) -> Run:
    """Start a run in a folder that does not exist yet, or is empty.

    `origin` goes into run.json as it is: what `reopen`'s loader needs to find the data again.
    Arrays in memory are kept in the cache for it. Of several processes each calls it, and the first
    one alone makes the folder.
    """
    run = world.first_leads(lambda: _create(folder, recipe, dataset, device, origin or {}, world))
    try:
        _check_agreement(run)
    except BaseException:  # the same command may be given again
        run.release()
        if run.writes:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def _create(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    origin: dict[str, Any],
    world: World,
) -> Run:
    if not world.leads:
        run = prepare(recipe, dataset, device, folder, world=world)
        run.info = _describe(run) | {"origin": origin}
        return run
    check_free(folder)
    run = prepare(recipe, dataset, device, folder, world=world)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    check_free(folder)  # another process may have been quicker
    run.lock = Lock(folder)
    try:
        clear(folder)
        _begin(run, origin | origin_of(dataset))
    except BaseException:  # a full disk, Ctrl-C: the same command may be given again
        run.release()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def enqueue(folder: Path, recipe: Recipe, origin: dict[str, Any]) -> None:
    """Write a run folder that `reopen`, so `leanres resume FOLDER`, will begin.

    `origin` says where the data is (`data.sources.locate`) and may name `device`, `threads`,
    `measure`, `tta`, `validate`, and `fold`: the number of a fold and how many there are.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    clear(folder)
    info = {"leanres": __version__, "recipe": recipe.to_dict(), "origin": origin}
    write_files(folder, {INFO: json.dumps(info, indent=1).encode()})
    lock.release()


def reopen(
    folder: Path,
    load: Callable[[dict[str, Any]], Dataset],
    device: Callable[[dict[str, Any]], Device],
    epochs: int | None = None,
    wait_s: float = 0.0,
    world: World = ALONE,
) -> Run:
    """A run as its newest intact checkpoint left it; `epochs` extends (or shortens) its recipe.

    A queued one begins. Nothing is written before it continues. `load` and `device` get run.json's
    content and give data and device. UserError where the data is not what the run was trained on;
    InUseError where another process trains in the folder and has not ended after `wait_s` seconds.
    Of several processes each calls it, and the first one alone locks the folder and writes.
    """
    run = world.first_leads(lambda: _reopen(folder, load, device, epochs, wait_s, world))
    try:
        _check_agreement(run)
    except BaseException:
        run.release()
        raise
    return run


def _reopen(
    folder: Path,
    load: Callable[[dict[str, Any]], Dataset],
    device: Callable[[dict[str, Any]], Device],
    epochs: int | None,
    wait_s: float,
    world: World,
) -> Run:
    read_info(folder, queued=True)  # UserError where there is no run to lock
    lock = Lock(folder, wait_s) if world.leads else None
    try:
        if lock:
            remove_partial(folder)
        info = read_info(folder, queued=True)  # a process that held the lock may have changed it
        recipe, notes = recipe_as_started(info)
        if epochs is not None:
            recipe = replace(recipe, epochs=epochs)
        dataset, same_order = load(info), True
        if fold := info["origin"].get("fold"):
            dataset = in_fold(dataset, *fold)
        if not is_queued(info):
            dataset, added = as_trained(folder, info, dataset)
            same_order = check_data(folder, info, dataset)
            notes += added
        known = None if is_queued(info) else Preprocess(**info["preprocess"])
        run = prepare(recipe, dataset, device(info), folder, known, world)
        run.lock, run.notes = lock, edited(folder) + notes
        if is_queued(info):
            _begin(run, info["origin"])
        else:
            _restore_(run, info, same_order, extended=epochs is not None)
    except BaseException:
        if lock:
            lock.release()
        raise
    return run


def _check_agreement(run: Run) -> None:
    """UserError where the processes of a training would not compute the same."""
    world, device = run.setup.world, run.setup.device
    if world.size == 1:
        return
    with world.agreed():  # digests of all images
        data = fingerprints(run.dataset)
    facts = {
        "leanres": __version__,
        "PyTorch": torch.__version__,
        **{f"the setting {key}": value for key, value in run.setup.recipe.to_dict().items()},
        **{f"data: {name}": digest for name, digest in data.items()},
        "the kernels": device.kernels,
        "the precision": device.precision,
        "compiled": device.compiled,
        "CPU threads": torch.get_num_threads(),
        "plugins": [plugin["sha256"] for plugin in plugins.used()],
        "steps done": run.state.step,
    }
    for what, value in facts.items():
        world.check_equal(what, value)


def _restore_state_(run: Run, info: dict[str, Any]) -> None:
    """Restore the newest intact checkpoint. A changed plugin is named, too."""
    changed = plugins.changes(info.get("plugins", []))
    try:
        run.notes += checkpoint.restore_(run.folder / CHECKPOINTS, run.state) + changed
    except CheckpointError as error:
        if not changed:
            raise
        raise CheckpointError(f"{changed[0]}: give the file as it was ({error})") from None


def _restore_(run: Run, info: dict[str, Any], same_order: bool, extended: bool) -> None:
    """Bring a fresh run to its newest intact checkpoint. UserError where it cannot continue."""
    folder, now = run.folder, _hardware(run)
    _restore_state_(run, info)
    if run.setup.recipe.teacher and _sha256(run.setup.recipe.teacher) != info["teacher"]:
        raise UserError(
            f"teacher = {run.setup.recipe.teacher!r} is not the one that {folder} was trained with"
        )
    if run.state.step > run.setup.counts.total:
        raise UserError(f"{folder} has run {run.state.step} steps already: give more --epochs")
    if extended:
        _train_on_(run)
    run.notes += exactness_notes(info["hardware"], now, same_order)
    run.info = info | {"recipe": run.setup.recipe.to_dict()}
    run.carried_s = run.info.pop("unfinished_seconds", 0.0)
    if not run.is_finished:
        run.info.pop("result", None)
    run.times = [t for t in read_times(folder) if t["step"] <= run.state.step]
    resumed = {"step": run.state.step, "commit": commit(), "hardware": now}
    run.info["resumed"] = [*info.get("resumed", []), resumed]


def _train_on_(run: Run) -> None:
    """Turn early stopping off where it has ended the run: more epochs were asked for."""
    recipe, done = run.setup.recipe, len(run.state.history)
    if stopped_early(run.state.history, recipe.stop_after) and done < recipe.epochs:
        run.setup = replace(run.setup, recipe=replace(recipe, stop_after=0))
        run.notes.append(
            f"it had ended early, after epoch {done}: now it trains to epoch {recipe.epochs},"
            " stop_after = 0"
        )


def prepare(
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    folder: Path = Path(),
    known: Preprocess | None = None,
    world: World = ALONE,
) -> Run:
    """A run at step 0, in memory alone; `create` also makes its folder.

    known: the preprocessing of a run that has begun; what it started from is in its checkpoint
    then, and not read again. UserError where recipe and images do not fit each other.
    """
    dataset.check_trainable()
    with_val = dataset.with_val(recipe.val)
    split, val = with_val.train, with_val.val
    check_val(recipe, val is not None)
    pretrained = load_pretrained(recipe.init) if recipe.init and known is None else None
    preprocess = known or _preprocess(recipe, split, dataset.whites, pretrained)
    device.reset_compile_cache()
    normalize = Normalize(preprocess.mean, preprocess.std)
    setup = Setup(recipe, split.to(device.augments_on), normalize, device, world)
    teacher = load_teacher(recipe.teacher, split, device) if recipe.teacher else None
    state = start(setup, teacher, pretrained)
    preflight_check(setup, state)
    val = None if val is None else val.to(device.name)
    config = network_config(recipe.model, split)
    run = Run(folder, setup, dataset, val, state, preprocess, config, writes=world.leads)
    run.notes += _init_notes(run)
    return run


def _preprocess(
    recipe: Recipe, split: Split, whites: Mapping[str, float], pretrained: Pretrained | None
) -> Preprocess:
    """As the recipe has it, else as the weights that it starts from, else of the images."""
    if pretrained and pretrained.preprocess.channels == split.channels:
        own_mean, own_std = pretrained.preprocess.mean, pretrained.preprocess.std
    else:
        own_mean, own_std = channel_stats(split)
    mean, std = recipe.mean or own_mean, recipe.std or own_std
    if not len(mean) == len(std) == split.channels:
        came = f"mean and std are of {len(mean)} and {len(std)} channels, the images have"
        raise UserError(f"{came} {split.channels}: give one number per channel, or [] to measure")
    std = tuple(max(s, 1 / 255) for s in std)  # a channel may be constant
    return Preprocess(split.images.shape[-1], mean, std, split.classes, whites)


def _init_notes(run: Run) -> list[str]:
    """What was loaded of the weights that the run starts from, and what is new."""
    if run.state.pretrained is None:
        return []
    loaded, new = fitting(run.state.model, run.state.pretrained, run.preprocess.classes)
    more = f"; new: {', '.join(sorted(new)[:5])}{', ...' * (len(new) > 5)}" if new else ""
    source = f"init {run.setup.recipe.init}"
    return [f"{source}: {len(loaded)} of {len(loaded) + len(new)} tensors loaded{more}"]


def device_of(info: dict[str, Any], name: str = "auto") -> Device:
    """The device that a run had, or the one named, with the precision that the run had there."""
    known, recipe = info.get("hardware", {}), info["recipe"]
    before = known.get("device", info["origin"].get("device", "auto"))
    chosen = before if name == "auto" else name
    if known and chosen.partition(":")[0] == before.partition(":")[0]:
        return detect(chosen, known["precision"], known["compiled"])
    return detect(chosen, recipe["precision"], recipe["compiled"])


def _begin(run: Run, origin: dict[str, Any]) -> None:
    """Write step 0, and run.json last: a folder that has one is one that `resume` continues."""
    run.info = _describe(run) | {"origin": origin}
    if not run.writes:
        return
    write_files(run.folder, {IMAGES: images_table(run.dataset, run.val)})
    save(run)
    write_info(run)


def save(run: Run) -> None:
    """Write the checkpoint and the metric rows."""
    # Timings are kept apart: the metrics of a resumed run equal the uninterrupted run's. They are
    # written first, as no checkpoint holds them; rows beyond it are left out by a resume.
    if not run.writes:
        return
    write_files(run.folder, {TIMES: json_lines(run.times)})
    checkpoint.save(run.folder / CHECKPOINTS, run.state)
    write_tables(run)


def write_tables(run: Run) -> None:
    """Write the metric rows, which the newest checkpoint holds too."""
    if not run.writes:
        return
    rows = run.state.history
    tables = {HISTORY: json_lines(rows), TABLE: csv_table(with_times(rows, run.times))}
    write_files(run.folder, tables)


def _describe(run: Run) -> dict[str, Any]:
    return {
        "leanres": __version__,
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "recipe": run.setup.recipe.to_dict(),
        "network": config_to_dict(run.config),
        "preprocess": asdict(run.preprocess),
        "teacher": _sha256(run.setup.recipe.teacher) if run.setup.recipe.teacher else None,
        "init": _sha256(run.setup.recipe.init) if run.setup.recipe.init else None,
        "data": {
            "name": run.dataset.name,
            "source": run.dataset.source,
            "train": len(run.setup.train),
            "val": 0 if run.val is None else len(run.val),
            "test": 0 if run.dataset.test is None else len(run.dataset.test),
            "fingerprints": fingerprints(run.dataset),
        },
        "hardware": _hardware(run),
        "plugins": plugins.used(),
    }


def _hardware(run: Run) -> dict[str, Any]:
    world, known = run.setup.world, hardware(run.setup.device)
    if world.size > 1:
        known |= {"processes": world.size, "reduction": "exact" if world.exact else "fast"}
    return known


def _sha256(weights: str) -> str:
    return file_digest(weights_file(weights), MAX_BYTES)


def write_info(run: Run) -> None:
    """Write run.json."""
    if not run.writes:
        return
    write_files(run.folder, {INFO: json.dumps(run.info, indent=1, allow_nan=False).encode()})
