"""Ray: each job in a process on a machine of a cluster (`pip install 'leanres[cluster]'`).

    job -> actor, placed by Ray where its CPUs and GPU are free (`trials.node`) -> the same process
    that LocalProcesses starts, in the same run folder, which all machines share

The process saves and stops when it is told to, and when its actor dies: with this process, with
Ray's worker, or with Ray on its machine. A job whose machine is lost goes on elsewhere from its
checkpoint; until then the lock of its run folder keeps a second process out.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanres.errors import UserError, first_line
from leanres.io import make_folder, write_bytes
from leanres.trials.executors import ended, log_file, worker_arguments
from leanres.trials.jobs import Event, Job, stopped
from leanres.trials.node import VISIBLE_S, End, Look, Node, eventually, listing, look
from leanres.trials.worker import EXIT_CODES
from leanres.version import __version__

ANSWER_S = 30.0  # for the head of a cluster
POLL_S = 0.2
# A machine that is cut off ends its jobs when Ray there has missed the head for a minute.
TAKEOVER_S = 180.0
# Ray would kill the children of a worker that ends, before they have saved.
ENVIRONMENT = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}


@dataclass
class _Task:
    """A job that Ray was given."""

    job: Job
    actor: Any
    host: Any  # reference to where it is, which is there once it has a machine
    end: Any  # reference to its End
    told: bool = False  # to stop


class Ray:
    """Each job on a machine of a Ray cluster, with CPUs and a GPU of its own.

    `folder`, which holds the run folders, is one that all machines share. Without an `address`, Ray
    is started on this machine. `device` "auto" is a GPU where the cluster has one. `at_once` 0: as
    many jobs as fit; more of them than GPUs share one. `threads` are a job's CPUs; 0: its share.
    `exclusive`: a job has a machine of its own. UserError where this is not possible.
    """

    retries = 5

    def __init__(
        self,
        folder: Path,
        address: str = "",
        device: str = "auto",
        at_once: int = 0,
        threads: int = 0,
        exclusive: bool = False,
    ) -> None:
        make_folder(folder)
        _connect(address)
        self._at_once = at_once
        self._cpus, self._gpus = _share(_machines(), device, at_once, threads, exclusive)
        self._threads = threads or self._cpus
        self._device = device if self._gpus else "cpu"
        self._tasks: list[_Task] = []
        self.slots = self._fitting()
        _check_machines(folder.resolve())

    @property
    def running(self) -> Sequence[Job]:
        return [task.job for task in self._tasks]

    def submit(self, job: Job) -> None:
        import ray

        actor = ray.remote(Node).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_concurrency=2, runtime_env=ENVIRONMENT
        )
        node, folder = actor.remote(), job.folder.resolve()
        there = Job(job.recipe, folder, job.origin, job.until_epoch)
        arguments = worker_arguments(there, self._device, self._threads, TAKEOVER_S)
        end = node.run.remote(arguments, folder, log_file(there), _own_data())
        self._tasks.append(_Task(job, node, node.host.remote(), end))

    def events(self, halted: Callable[[], bool]) -> Iterator[Event]:
        import ray

        tasks = {task.end: task for task in self._tasks}
        done, _ = ray.wait(list(tasks), timeout=POLL_S)
        if done:
            done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        for reference in done:
            self._tasks.remove(tasks[reference])
            yield _ended(tasks[reference])
        self.slots = self._fitting()

    def stop(self) -> None:
        import ray

        for task in self._tasks:
            if not task.told:
                task.told = True
                if ray.wait([task.host], timeout=0)[0]:
                    task.actor.stop.remote()
                else:  # it waits for a machine
                    ray.kill(task.actor)

    def _fitting(self) -> int:
        """How many jobs fit now: machines come and go."""
        return self._at_once or max(1, _count(_machines(), self._cpus, self._gpus))


def _connect(address: str) -> None:
    """Connect to a cluster, or start Ray here. UserError where that is not possible."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--executor ray needs Ray: pip install 'leanres[cluster]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    if address:
        _check_head(address)
    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address or "local", **quiet, **own)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"--address {address}" if address else "Ray does not start"
        raise UserError(f"{what}: {first_line(error)}") from None


def _check_head(address: str) -> None:
    """UserError where no head answers: `ray.init` would try for minutes, and say it at length."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        if not re.fullmatch(r"[^/]+:\d+", address):
            raise UserError(f"--address {address}: give HOST:PORT of the cluster's head, or auto")
        words += ["--address", address]
    try:
        if address != "auto":  # a refusal comes at once
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_S / 2).close()
        asked = subprocess.run(words, capture_output=True, timeout=ANSWER_S)
    except (OSError, OverflowError, subprocess.TimeoutExpired):
        asked = None
    if asked and b"AuthenticationError" in asked.stderr:
        raise UserError(f"--address {address}: the head wants a token: set RAY_AUTH_MODE=token")
    if not asked or asked.returncode:
        raise UserError(f"--address {address}: no head of a Ray cluster answers there")


def _machines() -> list[dict[str, Any]]:
    """The living nodes, as ray.nodes() has them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _share(
    machines: Sequence[Mapping[str, Any]],
    device: str,
    at_once: int,
    threads: int,
    exclusive: bool,
) -> tuple[int, float]:
    """CPUs and GPUs of a job. UserError where no machine has as many."""
    sizes = [(int(_of(node, "CPU")), int(_of(node, "GPU"))) for node in machines]
    all_gpus = 0 if device == "cpu" else sum(gpus for _, gpus in sizes)
    if not all_gpus and device not in ("auto", "cpu"):
        raise UserError(f"--devices {device}: no machine of the cluster has a GPU")
    gpus = (
        min(1.0, 1 / math.ceil(at_once / all_gpus))
        if all_gpus and at_once
        else 1.0 * bool(all_gpus)
    )
    shares = [int(cpus * gpus / has) for cpus, has in sizes if has] if gpus else []
    fair = min(shares, default=sum(cpus for cpus, _ in sizes) // at_once if at_once else 1)
    largest = max((cpus for cpus, has in sizes if has or not gpus), default=0)
    wanted = largest if exclusive else threads or max(1, min(fair, largest))
    if not _count(machines, max(1, wanted), gpus):
        raise UserError(
            f"no machine of the cluster has the CPUs of a job ({wanted}): lower --threads"
        )
    return wanted, gpus


def _count(machines: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """How many jobs of this size the machines hold."""
    fits = [int(_of(node, "CPU") // cpus) for node in machines]
    if not gpus:
        return sum(fits)
    return sum(min(n, int(_of(m, "GPU") / gpus)) for n, m in zip(fits, machines, strict=True))


def _of(node: Mapping[str, Any], resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))


def _check_machines(folder: Path) -> None:
    """UserError where a machine has another leanres or does not share the folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token, text = folder / f".shared-{secrets.token_hex(8)}", secrets.token_bytes(16)
    write_bytes(token, text)
    asked = {}
    for node in _machines():
        if _of(node, "CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            question = ray.remote(look).options(
                num_cpus=0, max_retries=0, scheduling_strategy=there
            )
            answer = token.with_name(f"{token.name}-{node['NodeID']}")
            asked[question.remote(token, text, answer.name)] = node["NodeManagerHostname"], answer
    try:
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=2 * VISIBLE_S)
        for reference, (host, answer) in asked.items():
            _check_answer(host, reference in done and reference, answer)
    finally:
        for path in (token, *(answer for _, answer in asked.values())):
            path.unlink(missing_ok=True)


def _check_answer(host: str, reference: Any, answer: Path) -> None:
    """UserError for a machine that has not answered, or not as it should."""
    import ray

    if not reference:
        raise UserError(f"{host} of the cluster does not answer")
    try:
        found: Look = ray.get(reference)
    except ray.exceptions.RayError as error:
        why = first_line(getattr(error, "cause", None) or error)
        raise UserError(f"{host} cannot run leanres {__version__}: {why}") from None
    if found.version != __version__:
        raise UserError(
            f"{host} has leanres {found.version}, not {__version__}: install that there"
        )
    problem = found.problem or ("" if eventually(answer.exists) else "cannot write to")
    if problem:
        raise UserError(f"{host} {problem} {answer.parent}: name a folder that all machines share")


def _own_data() -> dict[str, str]:
    """Where this machine looks for data: for a machine that does not say so itself."""
    given = os.environ.get("LEANRES_DATA")
    return {"LEANRES_DATA": str(Path(given).resolve())} if given else {}


def _ended(task: _Task) -> Event:
    """How a job ended, once all that its machine wrote is seen here."""
    import ray

    job = task.job
    try:
        end: End = ray.get(task.end)
    except ray.exceptions.RayTaskError as error:  # `Node.run` failed, on a full disk for example
        return Event("failed", job, first_line(error.cause or error))
    except ray.exceptions.RayError:
        return stopped(job) if task.told else Event("lost", job, f"{_host(task)} was lost")
    is_mine = end.code != EXIT_CODES["in use"]  # else another process writes there
    if is_mine and not eventually(lambda: _is_seen(job.folder, end.files)):
        return Event("failed", job, f"{_host(task)} wrote files that are not seen here")
    event = ended(job, end.code, end.line, end.seconds, task.told)
    if event.kind == "stopped" and not task.told:  # as machines are stopped that are rented cheaply
        return Event("lost", job, f"{_host(task)} stopped its process")
    return event


def _is_seen(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a run folder has these files here, as `listing` says of them."""
    try:
        return files.items() <= listing(folder).items()
    except OSError:
        return not files


def _host(task: _Task) -> str:
    import ray

    try:
        return str(ray.get(task.host, timeout=0))
    except ray.exceptions.RayError:
        return "its machine"
