"""`python -m leanres.trials.worker FOLDER OPTIONS`: run one job, for LocalProcesses and Ray.

OPTIONS is JSON: `origin` and `until_epoch` of the Job, the `plugins` to load, and `wait_s`
of `train`. stdin is a pipe that its parent holds open: the process stops when that has ended. Exit
codes: those of EXIT_CODES, and 130 and 143 stopped and saved.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.io import LOCK_WAIT_S, InUseError
from leanres.plugins import failure, load_plugin
from leanres.runs.fit import DivergedError, complete
from leanres.runs.layout import load_data_of
from leanres.runs.run import device_of, reopen
from leanres.runs.run_json import read_info
from leanres.runs.stop import Stopped
from leanres.training.device import Device
from leanres.training.loop import TrainState
from leanres.training.recipe import from_dict
from leanres.trials.jobs import Event, Job, Kind, is_finished

ORPHAN_S = LOCK_WAIT_S / 2  # to save in; whoever continues the run waits twice as long for it
EXIT_CODES: dict[Kind, int] = {"finished": 0, "failed": 2, "diverged": 4, "in use": 5}


def train(
    job: Job,
    load: Callable[[dict[str, Any]], Dataset],
    device: Callable[[dict[str, Any]], Device],
    halted: Callable[[], bool],
    log: Callable[[str], None] = lambda line: None,
    wait_s: float = 0.0,
) -> Event:
    """Train a job whose run folder exists in this process; how it ended.

    Once `halted`, called after each step, is true, the run is saved and Stopped is raised, as by
    SIGTERM. `load` and `device` are `reopen`'s; `log` receives notes and a line per epoch.
    The run folder may be in use for `wait_s` seconds, by default LOCK_WAIT_S.
    """

    def watch(state: TrainState) -> None:
        if halted():
            signal.raise_signal(signal.SIGTERM)

    def on_epoch(row: dict[str, Any]) -> None:
        log("  ".join(f"{key} {value:.6g}" for key, value in row.items()))

    try:
        if halted():
            raise Stopped(signal.SIGTERM)
        # A process whose parent was killed holds the folder until it has saved.
        run = reopen(job.folder, load, device, wait_s=wait_s or LOCK_WAIT_S)
        if is_finished(job):  # by the process that held the folder: test is not read again
            run.release()
            return Event("finished", job)
        run.info["origin"] |= job.origin
        for note in run.notes:
            log(f"note: {note}")
        complete(run, watch, on_epoch, job.until_epoch)
    except InUseError as error:
        return Event("in use", job, str(error))
    except DivergedError as error:
        return Event("diverged", job, str(error))
    except UserError as error:
        return Event("failed", job, str(error))
    except (Exception, SystemExit) as error:
        if told := failure(error):  # a user's own function raised it
            return Event("failed", job, told)
        raise
    return Event("finished", job)


def main(folder: Path, options: dict[str, Any]) -> int:
    """Run the job and return the exit code; progress and errors go to stderr."""
    origin = options["origin"]
    for plugin in options["plugins"]:
        load_plugin(plugin)

    def load(info: dict[str, Any]) -> Dataset:
        return load_data_of(info | {"origin": info["origin"] | origin})

    def device(info: dict[str, Any]) -> Device:
        if threads := origin.get("threads") or info.get("hardware", {}).get("threads"):
            torch.set_num_threads(threads)
        found = device_of(info, origin.get("device", "auto"))
        found.tune()
        return found

    recipe = from_dict(read_info(folder, queued=True)["recipe"])
    try:
        job = Job(recipe, folder, origin, options["until_epoch"])
        event = train(job, load, device, lambda: False, _log, options["wait_s"])
    except Stopped as stopped:
        return 128 + stopped.number
    if event.detail:
        _log("leanres: " + " ".join(event.detail.split()))
    return EXIT_CODES[event.kind]


def _end_with_parent() -> None:
    """Save and stop when the other end of stdin is closed, as it is by the parent's end, or die."""
    os.read(sys.stdin.fileno(), 1)  # of sys.stdin itself, the interpreter's end would wait
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_S)
    os._exit(128 + signal.SIGTERM)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
