"""A run: its folder from the first step to the final evaluation, and back after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError
from leanres.io import Lock, write_bytes
from leanres.metrics.classification import accuracy, measure
from leanres.metrics.inference import predict_both
from leanres.models.config import ModelConfig
from leanres.models.cost import count_params
from leanres.models.preprocess import Normalize, Preprocess
from leanres.models.zoo import config_to_dict
from leanres.runs import checkpoint
from leanres.runs.layout import (
    CHECKPOINTS,
    HISTORY,
    INFO,
    PREDICTIONS,
    TABLE,
    TIMES,
    check_data,
    check_free,
    commit,
    csv_table,
    exactness_notes,
    fingerprints,
    is_queued,
    json_lines,
    load_data_of,
    read_info,
    read_times,
    with_times,
    write_predictions,
)
from leanres.runs.stop import Stop
from leanres.runs.weights import WEIGHTS, load_teacher, save_weights, weights_file
from leanres.training.device import Device, detect, hardware, matrix_rate
from leanres.training.loop import (
    MetricsRow,
    NonFiniteLossError,
    TrainState,
    check_finite,
    network_config,
    start,
    train,
)
from leanres.training.preflight import preflight_check
from leanres.training.recipe import Recipe, StepCounts, recipe_as_started
from leanres.training.setup import Setup
from leanres.version import __version__

SAVE_SHARE = 20  # times a save's seconds, between saves
LONG_S = 60  # a run of this length is a timing, and states the machine's rate beside it


class DivergedError(UserError):
    """The training's loss or weights are not finite any more."""


@dataclass
class Run:
    """A run folder and what is in memory of it. Make it with `create` or `reopen`."""

    folder: Path
    setup: Setup
    dataset: Dataset
    val: Split | None
    state: TrainState
    preprocess: Preprocess
    info: dict[str, Any] = field(default_factory=dict)  # the content of run.json
    notes: list[str] = field(default_factory=list)
    times: list[MetricsRow] = field(default_factory=list)  # seconds and images/s per epoch
    carried_s: float = 0.0  # spent on the running epoch before a stop
    lock: Lock | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe that it trains."""
        return self.setup.recipe

    @property
    def device(self) -> Device:
        """Where it trains."""
        return self.setup.device

    @property
    def counts(self) -> StepCounts:
        """The recipe in steps."""
        return self.setup.counts

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return network_config(self.recipe, self.setup.train.classes)

    def release(self) -> None:
        """Let other processes have the folder."""
        if self.lock is not None:
            self.lock.release()


def create(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    device: Device,
    origin: dict[str, Any] | None = None,
) -> Run:
    """Start a run in a folder that does not exist yet, or is empty.

    `origin` goes into run.json as it is: what `reopen`'s loader needs to find the data again.
    """
    check_free(folder)
    run = prepare(recipe, dataset, device, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    check_free(folder)  # another process may have been quicker
    run.lock = Lock(folder)
    try:
        _begin(run, origin or {})
    except BaseException:  # a full disk, Ctrl-C: the same command may be given again
        run.release()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def enqueue(folder: Path, recipe: Recipe, origin: dict[str, Any]) -> None:
    """Write a run folder that `reopen`, so `leanres resume FOLDER`, will begin.

    `origin` says where the data is (`data.sources.locate`) and may name `device`, `threads`,
    `measure`, `tta` and `validate`.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    info = {"leanres": __version__, "recipe": recipe.to_dict(), "origin": origin}
    write_bytes(folder / INFO, json.dumps(info, indent=1).encode())


def reopen(
    folder: Path,
    load: Callable[[dict[str, Any]], Dataset],
    device: Callable[[dict[str, Any]], Device],
    epochs: int | None = None,
    wait_s: float = 0.0,
) -> Run:
    """A run as its newest intact checkpoint left it; `epochs` extends (or shortens) its recipe.

    A queued one begins. Nothing is written before it continues. `load` and `device` get run.json's
    content and give data and device. UserError where the data is not what the run was trained on;
    InUseError where another process trains in the folder and has not ended after `wait_s` seconds.
    """
    read_info(folder, queued=True)  # UserError where there is no run to lock
    lock = Lock(folder, wait_s)
    try:
        info = read_info(folder, queued=True)  # a process that held the lock may have changed it
        recipe, notes = recipe_as_started(info)
        if epochs is not None:
            recipe = replace(recipe, epochs=epochs)
        run = prepare(recipe, load(info), device(info), folder)
        run.lock, run.notes = lock, run.notes + notes
        if is_queued(info):
            _begin(run, info["origin"])
        else:
            _restore_(run, info)
    except BaseException:
        lock.release()
        raise
    return run


def _restore_(run: Run, info: dict[str, Any]) -> None:
    """Bring a fresh run to its newest intact checkpoint. UserError where it cannot continue."""
    folder, now = run.folder, hardware(run.device)
    same_order = check_data(folder, info, run.dataset)
    run.notes += checkpoint.restore_(folder / CHECKPOINTS, run.state)
    if run.recipe.teacher and _sha256(run.recipe.teacher) != info["teacher"]:
        raise UserError(
            f"teacher = {run.recipe.teacher!r} is not the one that {folder} was trained with"
        )
    if run.state.step > run.counts.total:
        raise UserError(f"{folder} has run {run.state.step} steps already: give more --epochs")
    run.notes += exactness_notes(info["hardware"], now, same_order)
    run.info = info | {"recipe": run.recipe.to_dict()}
    run.carried_s = run.info.pop("unfinished_seconds", 0.0)
    if run.state.step < run.counts.total:
        run.info.pop("result", None)
    run.times = [t for t in read_times(folder) if t["step"] <= run.state.step]
    resumed = {"step": run.state.step, "commit": commit(), "hardware": now}
    run.info["resumed"] = [*info.get("resumed", []), resumed]


def prepare(recipe: Recipe, dataset: Dataset, device: Device, folder: Path = Path()) -> Run:
    """A run at step 0, in memory alone; `create` also makes its folder.

    UserError where recipe and images do not fit each other.
    """
    parted = dataset.with_val(recipe.val)
    split, val = parted.train, parted.val
    own_mean, own_std = channel_stats(split)
    mean, std = recipe.mean or own_mean, recipe.std or own_std
    std = tuple(max(s, 1 / 255) for s in std)  # a channel may be constant
    preprocess = Preprocess(split.images.shape[-1], mean, std, split.classes)
    device.reset_compile_cache()
    setup = Setup(recipe, split.to(device.name), Normalize(mean, std), device)
    state = start(setup, load_teacher(recipe.teacher, split, device) if recipe.teacher else None)
    preflight_check(setup, state)
    val = None if val is None else val.to(device.name)
    return Run(folder, setup, dataset, val, state, preprocess)


def epochs(
    run: Run,
    stop: Stop,
    watch: Callable[[TrainState], None] = lambda state: None,
    *,
    until_epoch: int | None = None,
    validate: bool = True,
) -> Iterator[MetricsRow]:
    """Train to the end, to `until_epoch` or to the stop, saving after epochs and at the stop.

    After each epoch, but no sooner than after `SAVE_SHARE` times what the last save took: on a GPU
    an epoch of a second is not followed by half a second of writing. Yields each epoch's row with
    its `seconds` and `images_per_s`; without `validate` val is not measured. A loss that is not
    finite is a UserError that names the step; the checkpoint before it stays the newest.
    """
    last = math.inf if until_epoch is None else until_epoch * run.counts.steps_per_epoch

    def keep_going(state: TrainState) -> bool:
        watch(state)
        return not stop.signal and state.step < last

    if run.state.step >= last:
        return
    _write_info(run)  # what a resumed run has changed is so from its first step on, not before
    clock = time.perf_counter() - run.carried_s
    due = 0.0
    rows = train(run.state, run.setup, run.val if validate else None, watch=keep_going)
    try:
        for row in rows:
            now = time.perf_counter()
            seconds, clock = now - clock, now
            run.times.append(_time(run, row, seconds))
            if now >= due or run.state.step == run.counts.total:
                _save(run)
                due = time.perf_counter() + SAVE_SHARE * (time.perf_counter() - now)
            yield row | run.times[-1]
        if run.state.step < run.counts.total:  # stopped
            check_finite(run.state)
            if run.state.losses:  # within an epoch
                run.info["unfinished_seconds"] = time.perf_counter() - clock
                _write_info(run)
            _save(run)
    except NonFiniteLossError as error:
        kept = checkpoint.saved(run.folder / CHECKPOINTS)
        raise DivergedError(
            f"{error}: stopped; the last good checkpoint is {kept[0] if kept else 'none'}"
            ' (a lower lr, or precision = "float32", may help)'
        ) from None


def fit(
    folder: Path | str, recipe: Recipe, dataset: Dataset, device: Device | None = None
) -> dict[str, Any]:
    """Train `recipe` on `dataset` into a new run folder, measure it once, return the result.

    The result is run.json's: accuracy, accuracy_tta, nll, ece, per_class, confusion, n and more.
    Ctrl-C saves and raises Stopped, a KeyboardInterrupt; `resume(FOLDER)` continues.
    """
    device = device or detect("auto", recipe.precision, recipe.compiled)
    device.tune()
    return complete(create(Path(folder), recipe, dataset, device))


def resume(
    folder: Path | str,
    epochs: int | None = None,
    *,
    dataset: Dataset | None = None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Continue a run that was stopped, killed or queued, to its end; its result, as `fit`'s.

    `epochs` extends a finished one. The data is loaded from where the run had it, unless it is
    given; UserError where it is not the data that the run was trained on.
    """

    def on(info: dict[str, Any]) -> Device:
        known = device or device_of(info)
        known.tune()
        return known

    return complete(reopen(Path(folder), lambda info: dataset or load_data_of(info), on, epochs))


def device_of(info: dict[str, Any], name: str = "auto") -> Device:
    """The device that a run had, or the one named, with the precision that the run had there."""
    known, recipe = info.get("hardware", {}), info["recipe"]
    before = known.get("device", info["origin"].get("device", "auto"))
    chosen = before if name == "auto" else name
    if known and chosen.partition(":")[0] == before.partition(":")[0]:
        return detect(chosen, known["precision"], known["compiled"])
    return detect(chosen, recipe["precision"], recipe["compiled"])


def complete(
    run: Run,
    watch: Callable[[TrainState], None] = lambda state: None,
    on_epoch: Callable[[MetricsRow], None] = lambda row: None,
    until_epoch: int | None = None,
) -> dict[str, Any]:
    """Train to the recipe's end, or to `until_epoch`, and measure once at the end: the result.

    What to measure, and how, is in the run's origin. Empty where `until_epoch` came first. Raises
    Stopped, with all saved, where Ctrl-C or SIGTERM came.
    """
    origin = run.info["origin"]
    validate = origin.get("validate", True)
    try:
        with Stop() as stop:
            for row in epochs(run, stop, watch, until_epoch=until_epoch, validate=validate):
                on_epoch(row)
        stop.check()
        if run.state.step < run.counts.total:
            return {}
        return finish(run, origin.get("tta", "flip-shift"), origin.get("measure", "test"))
    finally:  # a notebook keeps the frame of what was interrupted, and the lock with it
        run.release()


def finish(run: Run, tta: str = "flip-shift", measure: str = "test") -> dict[str, Any]:
    """Write the weights, measure them once, and record the result.

    `measure` is "test", or "val" while one is still choosing; without a test split it is val, and
    the result says so. Returns run.json's `result`.
    """
    network = run.state.averaged
    save_weights(run.folder / WEIGHTS, network, run.config, run.preprocess)
    test = run.dataset.test if measure == "test" else None
    name, split = ("val", run.val) if test is None else ("test", test)
    result: dict[str, Any] = {"split": None, "params": count_params(run.state.model)}
    if split is not None:
        both = predict_both(
            run.device.accelerate(network),
            split.images,
            normalize=run.setup.normalize,
            tta=tta,
            autocast=run.device.autocast(),
        )
        logits, logits_tta = (logits.cpu() for logits in both)
        result |= score(logits, logits_tta, split, tta) | {"split": name}
        write_predictions(run.folder / PREDICTIONS, logits, split)
    result["train_seconds"] = round(sum(t["seconds"] for t in run.times), 1)
    if result["train_seconds"] > LONG_S:
        # A timing means nothing without it where machines are shared: it may halve within an hour.
        result["matrix_tflops"] = round(matrix_rate(run.device)[0], 3)
    run.info["result"] = result
    run.info["test_reads"] = run.info.get("test_reads", 0) + (name == "test")
    _write_info(run)
    return result


def score(logits: Tensor, logits_tta: Tensor, split: Split, tta: str) -> dict[str, Any]:
    """The figures of an evaluation: everything without augmentation, accuracy also with it."""
    labels = split.labels.cpu()
    with_tta = {"accuracy_tta": accuracy(logits_tta, labels), "tta": tta}
    return measure(logits, labels) | with_tta


def _begin(run: Run, origin: dict[str, Any]) -> None:
    """Write step 0, and run.json last: a folder that has one is one that `resume` continues."""
    run.info = _describe(run) | {"origin": origin}
    _save(run)
    _write_info(run)


def _time(run: Run, row: MetricsRow, seconds: float) -> MetricsRow:
    images = run.counts.steps_per_epoch * run.counts.images_per_step
    return {
        "epoch": row["epoch"],
        "step": row["step"],
        "seconds": round(seconds, 3),
        "images_per_s": round(images / seconds, 1),
    }


def _save(run: Run) -> None:
    checkpoint.save(run.folder / CHECKPOINTS, run.state)
    # Timings are kept apart: the metrics of a resumed run equal the uninterrupted run's.
    write_bytes(run.folder / HISTORY, json_lines(run.state.history))
    write_bytes(run.folder / TIMES, json_lines(run.times))
    write_bytes(run.folder / TABLE, csv_table(with_times(run.state.history, run.times)))


def _describe(run: Run) -> dict[str, Any]:
    return {
        "leanres": __version__,
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "recipe": run.recipe.to_dict(),
        "network": config_to_dict(run.config),
        "preprocess": asdict(run.preprocess),
        "teacher": _sha256(run.recipe.teacher) if run.recipe.teacher else None,
        "data": {
            "name": run.dataset.name,
            "source": run.dataset.source,
            "train": len(run.setup.train),
            "val": 0 if run.val is None else len(run.val),
            "test": 0 if run.dataset.test is None else len(run.dataset.test),
            "fingerprints": fingerprints(run.dataset),
        },
        "hardware": hardware(run.device),
    }


def _sha256(weights: str) -> str:
    return hashlib.sha256(weights_file(weights).read_bytes()).hexdigest()


def _write_info(run: Run) -> None:
    write_bytes(run.folder / INFO, json.dumps(run.info, indent=1).encode())
