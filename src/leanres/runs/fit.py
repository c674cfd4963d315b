"""Training a run: to its end, saving on the way, and the final evaluation."""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanres.data.split import Dataset
from leanres.errors import LostProcessError, UserError
from leanres.io import InUseError, Lock
from leanres.models.cost import count_params
from leanres.models.preprocess import ImageClassifier
from leanres.runs import checkpoint
from leanres.runs.layout import CHECKPOINTS, PREDICTIONS, load_data_of
from leanres.runs.manifest import write_files
from leanres.runs.predictions import predictions_table
from leanres.runs.predictor import Predictor, tta_of
from leanres.runs.run import (
    Run,
    create,
    device_of,
    reopen,
    save,
    write_info,
    write_tables,
)
from leanres.runs.stop import Stop
from leanres.runs.weights import WEIGHTS, weights_bytes
from leanres.training.device import Device, detect
from leanres.training.distributed import ALONE
from leanres.training.early_stopping import best_epoch
from leanres.training.loop import (
    MetricsRow,
    NonFiniteLossError,
    TrainState,
    check_finite,
    train_epochs,
)
from leanres.training.recipe import Recipe
from leanres.training.timing import matrix_rate

SAVE_SHARE = 20  # times a save's seconds, between saves
VAL_SHARE = 0.1  # is held out where there is nothing else to measure on
LONG_S = 60  # a run of this length is a timing, and states the machine's rate beside it


class DivergedError(UserError):
    """The training's loss or weights are not finite any more."""


def epochs(
    run: Run,
    stop: Stop,
    watch: Callable[[TrainState], None] = lambda state: None,
    until_epoch: int | None = None,
) -> Iterator[MetricsRow]:
    """Train to the end, to `until_epoch` or to the stop, saving after epochs and at the stop.

    After each epoch, but no sooner than after `SAVE_SHARE` times what the last save took: on a GPU
    an epoch of a second is not followed by half a second of writing. Yields each epoch's row with
    its `seconds` and `images_per_s`. A loss that is not finite is a UserError that names the step;
    the checkpoint before it stays the newest. Where another process of the training has ended, the
    state is saved and LostProcessError raised.
    """
    last = math.inf if until_epoch is None else until_epoch * run.setup.counts.steps_per_epoch

    def keep_going(state: TrainState) -> bool:
        watch(state)
        stop.signal = run.setup.world.highest(stop.signal)  # all stop at the same step
        return not stop.signal and state.step < last

    if run.state.step >= last:
        return
    write_info(run)  # what a resumed run has changed is so from its first step on, not before
    write_tables(run)  # a kill may have come between the newest checkpoint and its rows
    clock = time.perf_counter() - run.carried_s
    due = 0.0
    validate = run.info["origin"].get("validate", True) or run.setup.recipe.chooses_on_val
    val = run.val if validate else None
    rows = train_epochs(run.state, run.setup, val, watch=keep_going)
    try:
        for row in rows:
            now = time.perf_counter()
            seconds, clock = now - clock, now
            run.times.append(_time(run, row, seconds))
            _check_same_weights(run)
            if now >= due or run.is_finished:
                save(run)
                due = time.perf_counter() + SAVE_SHARE * (time.perf_counter() - now)
            yield row | run.times[-1]
        if not run.is_finished:
            _save_between_steps(run, time.perf_counter() - clock)
    except LostProcessError as error:
        raise _saved_alone(run, time.perf_counter() - clock, error) from None
    except NonFiniteLossError as error:
        kept = checkpoint.saved(run.folder / CHECKPOINTS)
        raise DivergedError(
            f"{error}: stopped; the last good checkpoint is {kept[0] if kept else 'none'}"
            ' (a lower lr, or precision = "float32", may help)'
        ) from None


def _save_between_steps(run: Run, unfinished_s: float) -> None:
    """Save a stopped run; `unfinished_s` were spent on the running epoch."""
    check_finite(run.state)
    if run.state.losses:  # within an epoch
        run.info["unfinished_seconds"] = unfinished_s
        write_info(run)
    save(run)


def _saved_alone(run: Run, unfinished_s: float, error: LostProcessError) -> LostProcessError:
    """Save a run whose other processes are lost, as the one that gets its folder; the error to say.

    All that are left have the same state: that before the step at which one was lost.
    """
    noticed, run.setup = time.time(), replace(run.setup, world=ALONE)
    if not run.writes and not _took_over(run, noticed):
        error.speaks = False
        return error
    _save_between_steps(run, unfinished_s)
    said = LostProcessError(
        f"{error}: stopped at step {run.state.step} of {run.setup.counts.total}, saved; continue"
        f" with: leanres resume {run.folder}"
    )
    said.speaks = True
    return said


def _took_over(run: Run, noticed: float) -> bool:
    """Whether this process may write now: the first one has ended, and no other has saved since."""
    try:
        lock = Lock(run.folder)
    except InUseError:
        return False
    newest = checkpoint.saved(run.folder / CHECKPOINTS)
    if not newest or newest[0].stat().st_mtime > noticed:
        lock.release()
        return False
    run.lock, run.writes = lock, True
    return True


def _check_same_weights(run: Run) -> None:
    """RuntimeError where the processes' networks are not the same to the last bit."""
    world = run.setup.world
    if world.size == 1:
        return
    crc = 0
    for tensor in run.state.model.state_dict().values():
        crc = zlib.crc32(tensor.cpu().contiguous().numpy().data, crc)
    found = world.exchange(crc)
    if len({*found}) > 1:
        odd = next(rank for rank, value in enumerate(found) if value != found[0])
        raise RuntimeError(
            f"process {odd} has other weights than process 0 after step {run.state.step}, which no"
            " correct hardware computes; the checkpoint before it stays the newest"
        )


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
    try:
        with Stop() as stop:
            for row in epochs(run, stop, watch, until_epoch):
                on_epoch(row)
            stop.signal = run.setup.world.highest(stop.signal)
        stop.check()
        if not run.is_finished:
            return {}
        result = finish(run)
        try:
            run.setup.world.highest(0)
        except LostProcessError:  # whoever writes has written
            if not run.writes:
                raise
        return result
    finally:  # a notebook keeps the frame of what was interrupted, and the lock with it
        run.release()


def with_val(recipe: Recipe, dataset: Dataset, otherwise: str) -> tuple[Recipe, list[str]]:
    """The recipe with a share of train held out as val where nothing else could be measured.

    And a note that says so; `otherwise` is what one gives to train on all images.
    """
    if recipe.val or dataset.val or dataset.test or not dataset.train:
        return recipe, []
    try:
        count = len(dataset.with_val(VAL_SHARE).val or ())
    except UserError as error:
        return recipe, [f"no test and no val images, so nothing is measured ({error})"]
    note = (
        f"no test and no val images: {count:,} of {len(dataset.train):,} are held out as val"
        f" (val = {VAL_SHARE:g}; {otherwise} trains on all and measures nothing)"
    )
    return replace(recipe, val=VAL_SHARE), [note]


def finish(run: Run) -> dict[str, Any]:
    """Write the weights, measure them once, and record the result, which is returned.

    What is measured, and how, is in the run's origin: test, or val while one is still choosing.
    Without a test split it is val, and the result says so.
    """
    network, origin = run.state.kept, run.info["origin"]
    write_tables(run)
    weights = weights_bytes(
        network, run.config, run.preprocess, precision=run.setup.device.precision
    )
    if run.writes:
        write_files(run.folder, {WEIGHTS: weights})
    test = run.dataset.test if origin.get("measure", "test") == "test" else None
    name, split = ("val", run.val) if test is None else ("test", test)
    result: dict[str, Any] = {"split": None, "params": count_params(run.state.model)}
    result["weights"] = hashlib.sha256(weights).hexdigest()
    result |= _choice(run)
    if split is not None:
        classifier = ImageClassifier(network, run.preprocess).to(run.setup.device.name)
        tta = tta_of(run.setup.recipe.augment)
        predictor = Predictor(classifier, run.config, run.setup.device, tta)
        measured, logits = predictor.measure(split, origin.get("tta", "auto"), run.setup.world)
        if not logits.isfinite().all():
            raise DivergedError(f"the network's logits on {name} are not finite: give a lower lr")
        result |= measured | {"split": name}
        if run.writes:
            table = predictions_table(logits.softmax(1), split)
            write_files(run.folder, {PREDICTIONS: table})
    result["train_seconds"] = round(sum(t["seconds"] for t in run.times), 1)
    if run.writes and result["train_seconds"] > LONG_S:
        # A timing means nothing without it where machines are shared: it may halve within an hour.
        result["matrix_tflops"] = round(matrix_rate(run.setup.device)[0], 3)
    run.info["result"] = result
    run.info["test_reads"] = run.info.get("test_reads", 0) + (name == "test")
    write_info(run)
    return result


def _choice(run: Run) -> dict[str, Any]:
    """Which epoch's weights the result is of, where val chose it; else empty."""
    recipe, history = run.setup.recipe, run.state.history
    if not recipe.chooses_on_val:
        return {}
    last = len(history)
    epoch = best_epoch(history) if recipe.keep_best else last
    return {"epoch": epoch, "last_epoch": last, "chosen_by": "val"}


def _time(run: Run, row: MetricsRow, seconds: float) -> MetricsRow:
    images = run.setup.counts.steps_per_epoch * run.setup.counts.images_per_step
    return {
        "epoch": row["epoch"],
        "step": row["step"],
        "seconds": round(seconds, 3),
        "images_per_s": round(images / seconds, 1),
    }
