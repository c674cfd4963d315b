"""`--processes` and torchrun: several processes that train one network."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Literal

import typer

from leanres.cli.options import machine_option
from leanres.errors import UserError

if TYPE_CHECKING:
    from leanres.training.distributed import World

PROCESSES = machine_option(
    1,
    min=1,
    max=1024,
    help="Processes that train together, with the same result to the last bit; each takes some of"
    " the `accumulate` parts of a batch, and its share of the cores. torchrun starts them on"
    " several machines.",
)
REDUCTION = machine_option(
    None,
    help="How processes add gradients: exact (up to 8 on one machine) or fast, equal within"
    " rounding.",
)
Reduction = Literal["exact", "fast"]
_UNTIL_EXIT = contextlib.ExitStack()
atexit.register(_UNTIL_EXIT.close)


def world_of(processes: int, reduction: Reduction | None, device: str, threads: int) -> World:
    """The processes to train with: joined where torchrun has started this one, else started here.

    In the process that starts the others it does not return, but exits as they do.
    """
    from leanres.training.device import detect
    from leanres.training.distributed import joined, launched

    if launched():
        started = int(os.environ["WORLD_SIZE"])
        if processes not in (1, started):
            raise UserError(
                f"--processes {processes}, but {started} have been started: leave it out"
            )
        kind = detect(device).kind
        return _UNTIL_EXIT.enter_context(joined(reduction, kind))
    if processes > 1:
        raise typer.Exit(_start(processes, threads or max(1, (os.cpu_count() or 1) // processes)))
    return _UNTIL_EXIT.enter_context(joined())


def restarts() -> int:
    """How often torchrun has started these processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def device_of_process(name: str, world: World) -> str:
    """The device of this process: of several GPUs each takes its own."""
    from leanres.training.device import detect

    if world.size == 1 or name.partition(":")[1] or detect(name).kind != "cuda":
        return name
    return f"cuda:{world.local_rank}"


def _start(processes: int, threads: int) -> int:
    """Run this command in several processes by torchrun's own agent; the exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # the processes speak for themselves
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        monitor_interval=0.1,
    )
    command = ["-m", "leanres", *sys.argv[1:]]
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        for rank, code in codes.items():
            if code < 0 and -code != signal.SIGTERM:  # which the others get when one has ended
                name = signal.Signals(-code).name
                print(f"leanres: process {rank} was ended by {name}", file=sys.stderr)
        saved = {*codes.values()} & {128 + signal.SIGINT, 128 + signal.SIGTERM}
        return max(saved or {code if code > 0 else 1 for code in codes.values()})
    return 0
