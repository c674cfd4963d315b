"""A run: its folder from the first step to the final evaluation, and back after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from leanres.data.split import Dataset, Split, channel_stats
from leanres.errors import UserError
from leanres.metrics.inference import predict_both
from leanres.metrics.accuracy import measure
from leanres.models.config import ModelConfig
from leanres.models.cost import count_params
from leanres.models.zoo import config_to_dict
from leanres.runs import checkpoint
from leanres.training.device import (
    Engine,
    Normalize,
    detect,
    hardware,
    matrix_rate,
)
from leanres.io import write_bytes
from leanres.runs.layout import (
    CHECKPOINTS,
    INFO,
    LOCK,
    METRICS,
    PREDICTIONS,
    TABLE,
    TIMES,
    Lock,
    check_data,
    commit,
    csv_table,
    fingerprints,
    json_lines,
    read_info,
    read_times,
    write_predictions,
)
from leanres.training.loop import (
    NonFiniteLossError,
    Row,
    TrainState,
    check_finite,
    network_config,
    start,
    train,
)
from leanres.training.recipe import StepCounts, Recipe, recipe_as_started
from leanres.training.preflight import preflight_check
from leanres.runs.weights import WEIGHTS, Preprocess, save_weights, weights_file
from leanres.version import __version__

REST = 20  # times a save's seconds, between saves
LONG_S = 60  # a run of this length is a timing, and states the machine's rate beside it


class DivergedError(UserError):
    """The training's loss or weights are not finite any more."""


@dataclass
class Run:
    """A run folder and what is in memory of it. Make it with `create` or `reopen`."""

    folder: Path
    recipe: Recipe
    dataset: Dataset
    engine: Engine
    train: Split
    val: Split | None
    state: TrainState
    preprocess: Preprocess
    normalize: Normalize
    info: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    times: list[Row] = field(default_factory=list)  # seconds and images/s per epoch
    carried_s: float = 0.0  # spent on the running epoch before a stop
    lock: Lock | None = None

    @property
    def plan(self) -> StepCounts:
        """The recipe in steps."""
        return StepCounts(self.recipe, len(self.train))

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return network_config(self.recipe, self.train.classes)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the work between two steps, and all is saved; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stop:
    """While entered, the first Ctrl-C or SIGTERM is remembered instead of raised.

    `signal` is its number, 0 if none came; `check` raises Stopped if one came. A second Ctrl-C
    interrupts at once.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        main = threading.current_thread() is threading.main_thread()  # others get no signals
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def create(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    engine: Engine,
    origin: dict[str, Any] | None = None,
) -> Run:
    """Start a run in a folder that does not exist yet, or is empty.

    `origin` goes into run.json as it is: what `reopen`'s loader needs to find the data again.
    """
    check_free(folder)
    run = prepare(folder, recipe, dataset, engine)
    run.info = _describe(run) | {"origin": origin or {}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    check_free(folder)  # another process may have been quicker
    run.lock = Lock(folder)
    try:  # step 0, and run.json last: a folder that has one is one that `resume` goes on with
        _save(run)
        _write_info(run)
    except BaseException:  # a full disk, Ctrl-C: the same command may be given again
        run.lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already, with a UserError."""
    if folder.exists() and (not folder.is_dir() or any(f.name != LOCK for f in folder.iterdir())):
        raise UserError(
            f"{folder} exists already: `leanres resume {folder}` goes on with it, --out names"
            " another folder"
        )


def reopen(
    folder: Path,
    load: Callable[[dict[str, Any]], Dataset],
    engine: Callable[[dict[str, Any]], Engine],
    epochs: int | None = None,
) -> Run:
    """A run as its newest sound checkpoint left it; `epochs` extends (or shortens) its recipe.

    Nothing is written before it goes on. `load` and `engine` get run.json's content and give data
    and engine. UserError where the data is not what the run was trained on.
    """
    info = read_info(folder)
    lock = Lock(folder)
    recipe, renamed = recipe_as_started(info)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    run = prepare(folder, recipe, load(info), engine(info))
    run.notes += renamed
    if not check_data(folder, info, run.dataset):
        run.notes.append(
            "the images come in another order than before: the run goes on, not bit"
            " for bit as it would have"
        )
    run.notes += checkpoint.restore_(folder / CHECKPOINTS, run.state)
    if run.recipe.teacher and _sha256(run.recipe.teacher) != info["teacher"]:
        raise UserError(
            f"teacher = {run.recipe.teacher!r} is another one than {folder} has learnt from"
        )
    if run.state.step > run.plan.total:
        raise UserError(f"{folder} has run {run.state.step} steps already: give more --epochs")
    run.lock = lock
    run.info = info | {"recipe": recipe.to_dict()}
    run.carried_s = run.info.pop("unfinished_seconds", 0.0)
    if run.state.step < run.plan.total:
        run.info.pop("result", None)
    run.times = [t for t in read_times(folder / TIMES) if t["step"] <= run.state.step]
    run.info["resumed"] = [
        *info.get("resumed", []),
        {"step": run.state.step, "commit": commit(), "hardware": hardware(run.engine)},
    ]
    return run


def prepare(folder: Path, recipe: Recipe, dataset: Dataset, engine: Engine) -> Run:
    """A run at step 0, in memory alone; `create` also makes its folder.

    UserError where recipe and images do not fit each other.
    """
    parted = dataset.with_val(recipe.val)
    split, val = parted.train, parted.val
    own_mean, own_std = channel_stats(split)
    mean, std = recipe.mean or own_mean, recipe.std or own_std
    std = tuple(max(s, 1 / 255) for s in std)  # a channel may be constant
    preprocess = Preprocess(split.images.shape[-1], mean, std, split.classes)
    normalize = Normalize(mean, std)
    engine.reset_compile_cache()
    state = start(recipe, split, normalize, engine)
    preflight_check(StepCounts(recipe, len(split)), split.subset([0, len(split) - 1]), state, normalize)
    val = None if val is None else val.to(engine.device)
    split = split.to(engine.device)
    return Run(folder, recipe, dataset, engine, split, val, state, preprocess, normalize, info={})


def epochs(run: Run, stop: Stop, watch: Callable[[TrainState], None]) -> Iterator[Row]:
    """Train to the end or to the stop, saving after epochs and at the stop.

    After each epoch, but no sooner than after `REST` times what the last save took: on a GPU an
    epoch of a second is not followed by half a second of writing. Yields each epoch's row with
    its `seconds` and `images_per_s`. A loss that is not finite is a UserError that names the step;
    the checkpoint before it stays the newest.
    """

    def go_on(state: TrainState) -> bool:
        watch(state)
        return not stop.signal

    _write_info(run)  # what a resumed run has changed is so from its first step on, not before
    clock = time.perf_counter() - run.carried_s
    due = 0.0
    rows = train(run.state, run.train, run.recipe, run.normalize, run.engine, run.val, watch=go_on)
    try:
        for row in rows:
            now = time.perf_counter()
            seconds, clock = now - clock, now
            run.times.append(_time(run, row, seconds))
            if now >= due or run.state.step == run.plan.total:
                _save(run)
                due = time.perf_counter() + REST * (time.perf_counter() - now)
            yield row | run.times[-1]
        if run.state.step < run.plan.total:  # stopped
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
    folder: Path | str, recipe: Recipe, dataset: Dataset, engine: Engine | None = None
) -> dict[str, Any]:
    """Train `recipe` on `dataset` into a new run folder, measure it once, return the result.

    The result is run.json's: accuracy, accuracy_tta, nll, ece, per_class, confusion, n and more.
    Ctrl-C saves and raises Stopped, a KeyboardInterrupt; `leanres resume FOLDER` goes on.
    """
    engine = engine or detect("auto", recipe.precision, recipe.compiled)
    engine.tune()
    run = create(Path(folder), recipe, dataset, engine)
    try:
        with Stop() as stop:
            for _ in epochs(run, stop, lambda state: None):
                pass
        stop.check()
        return finish(run)
    finally:  # a notebook keeps the frame of what was interrupted, and the lock with it
        if run.lock is not None:
            run.lock.release()


def _time(run: Run, row: Row, seconds: float) -> Row:
    images = run.plan.steps_per_epoch * run.plan.images_per_step
    return {
        "epoch": row["epoch"],
        "step": row["step"],
        "seconds": round(seconds, 3),
        "images_per_s": round(images / seconds, 1),
    }


def _save(run: Run) -> None:
    checkpoint.save(run.folder / CHECKPOINTS, run.state)
    # Timings are kept apart: the metrics of a resumed run equal the uninterrupted run's.
    write_bytes(run.folder / METRICS, json_lines(run.state.history))
    write_bytes(run.folder / TIMES, json_lines(run.times))
    write_bytes(run.folder / TABLE, csv_table(run.state.history, run.times))


def finish(run: Run, tta: str = "flip-shift", measure_on: str = "test") -> dict[str, Any]:
    """Write the weights, measure them once, and record the result.

    `measure_on` is "test", or "val" while one is still choosing; without a test split it is val,
    and the result says so. Returns run.json's `result`.
    """
    network = run.state.averaged
    save_weights(run.folder / WEIGHTS, network, run.config, run.preprocess)
    test = run.dataset.test if measure_on == "test" else None
    name, split = ("val", run.val) if test is None else ("test", test)
    result: dict[str, Any] = {"split": None, "params": count_params(run.state.model)}
    if split is not None:
        both = predict_both(
            network,
            split.images,
            normalize=run.normalize,
            tta=tta,
            autocast=run.engine.autocast(),
        )
        logits, logits_tta = (logits.cpu() for logits in both)
        result |= score(logits, logits_tta, split, tta) | {"split": name}
        write_predictions(run.folder / PREDICTIONS, logits, split)
    result["train_seconds"] = round(sum(t["seconds"] for t in run.times), 1)
    if result["train_seconds"] > LONG_S:
        # A timing means nothing without it where machines are shared: it may halve within an hour.
        result["matrix_tflops"] = round(matrix_rate(run.engine), 3)
    run.info["result"] = result
    run.info["test_reads"] = run.info.get("test_reads", 0) + (name == "test")
    _write_info(run)
    return result


def score(logits: Tensor, logits_tta: Tensor, split: Split, tta: str) -> dict[str, Any]:
    """The figures of an evaluation: everything without augmentation, accuracy also with it."""
    measured = measure(logits, split.labels.cpu())
    return measured.to_dict() | {
        "accuracy_tta": measure(logits_tta, split.labels.cpu()).accuracy,
        "tta": tta,
    }


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
            "train": len(run.train),
            "val": 0 if run.val is None else len(run.val),
            "test": 0 if run.dataset.test is None else len(run.dataset.test),
            "fingerprints": fingerprints(run.dataset),
        },
        "hardware": hardware(run.engine),
    }


def _sha256(weights: str) -> str:
    return hashlib.sha256(weights_file(weights).read_bytes()).hexdigest()


def _write_info(run: Run) -> None:
    write_bytes(run.folder / INFO, json.dumps(run.info, indent=1).encode())
