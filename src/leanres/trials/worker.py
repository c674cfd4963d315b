"""`python -m leanres.trials.worker FOLDER OPTIONS`: run one job, for LocalProcesses.

OPTIONS is JSON: `origin` and `until_epoch` of the Job, and `parent`, the number of the process that
waits for it. Exit codes: 0 done, 2 the user's mistake, 4 diverged, 130 and 143 stopped and saved.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from leanres.data.split import Dataset
from leanres.errors import UserError
from leanres.runs.layout import load_data_of, read_info
from leanres.runs.run import DivergedError, device_of
from leanres.runs.stop import Stopped
from leanres.training.device import Device
from leanres.training.recipe import from_dict
from leanres.trials.jobs import Job, train

DIVERGED = 4


def main(folder: Path, options: dict[str, Any]) -> int:
    """Run the job and return the exit code; progress and errors go to stderr."""
    origin, parent = options["origin"], int(options["parent"])

    def load(info: dict[str, Any]) -> Dataset:
        return load_data_of(info | {"origin": info["origin"] | origin})

    def device(info: dict[str, Any]) -> Device:
        if threads := origin.get("threads") or info.get("hardware", {}).get("threads"):
            torch.set_num_threads(threads)
        found = device_of(info, origin.get("device", "auto"))
        found.tune()
        return found

    def orphaned() -> bool:
        return os.getppid() != parent

    try:
        recipe = from_dict(read_info(folder, queued=True)["recipe"])
        train(Job(recipe, folder, origin, options["until_epoch"]), load, device, orphaned, _log)
    except UserError as error:
        _log("leanres: " + " ".join(str(error).split()))
        return DIVERGED if isinstance(error, DivergedError) else 2
    except Stopped as stopped:
        return 128 + stopped.number
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
