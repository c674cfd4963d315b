"""`leanres resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanres.cli import complete, options
from leanres.cli.processes import (
    PROCESSES,
    REDUCTION,
    Reduction,
    device_of_process,
    world_of,
)
from leanres.cli.progress import train_and_print
from leanres.errors import UserError
from leanres.runs.tracking import check_trackers

if TYPE_CHECKING:
    from leanres.runs.run import Run
    from leanres.training.device import Device


def resume(
    folder: Path = typer.Argument(metavar="RUN", help="The run folder."),
    epochs: int | None = options.training_option(
        None, min=1, help="Total number of epochs to train to."
    ),
    data: str | None = options.RUN_DATA,
    tta: str | None = options.measurement_option(
        None,
        help="Test-time augmentation, as in train. Default: the run's own.",
        autocompletion=complete.TTA,
    ),
    measure: options.Measure | None = typer.Option(
        None, help="The split to measure. Default: the run's own."
    ),
    device_name: str = options.DEVICE,
    threads: int = options.THREADS,
    processes: int = PROCESSES,
    reduction: Reduction | None = REDUCTION,
    no_report: bool = options.NO_REPORT,
    track: str = options.TRACK,
    as_json: bool = options.JSON,
) -> None:
    """Continue a run that was stopped, killed or queued, or extend a finished one.

    It is measured on the split that it was started with; --measure test then reads test after val.

    Example: leanres resume runs/first --epochs 20
    """
    from leanres.runs.run import device_of, reopen

    options.check_tta(tta or "auto")  # refuses a mistake before the training
    trackers = check_trackers(track)
    world = world_of(processes, reduction, device_name, threads)

    def device(info: dict[str, Any]) -> Device:
        options.set_threads(threads or info.get("hardware", info["origin"]).get("threads"))
        found = device_of(info, device_of_process(device_name, world))
        found.tune()
        return found

    run = reopen(
        folder, lambda info: options.load_run_data(info, data), device, epochs, world=world
    )
    options.print_notes(run.notes)
    given = {"tta": tta, "measure": measure}
    try:
        _check_unfinished(run, measure)
        run.info["origin"] |= {key: value for key, value in given.items() if value is not None}
        options.check_val(run.info["origin"].get("measure", "test"), run.val is not None)
        train_and_print(run, as_json, trackers, not no_report)
    finally:
        run.release()


def _check_unfinished(run: Run, measure: str | None) -> None:
    """Refuse a run with no epoch left to train and nothing left to measure."""
    measured = run.info.get("result", {}).get("split")
    wanted = measure if run.dataset.test else "val"
    if not run.is_finished or measured is None or wanted not in (None, measured):
        return
    also = ", --measure test reads test too" if run.dataset.test and measured == "val" else ""
    done, recipe = len(run.state.history), run.setup.recipe
    early = f" of {recipe.epochs}" if done < recipe.epochs else ""
    why = f", ended early by stop_after = {recipe.stop_after}" if early else ""
    raise UserError(
        f"{run.folder} is finished ({done}{early} epochs{why}, measured on {measured}):"
        f" --epochs N extends it{also}"
    )
