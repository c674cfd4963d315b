"""Log a run's metrics to TensorBoard and MLflow while it trains.

Trackers get the rows that metrics.jsonl is written from, and measure nothing themselves. Their
libraries are optional: `pip install 'leanres[track]'`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leanres.errors import UserError, first_line
from leanres.io import parse_json, read_file, write_bytes
from leanres.registry import Table

if TYPE_CHECKING:
    from leanres.training.loop import MetricsRow

NOT_METRICS = ("epoch", "step")


class Tracker(Protocol):
    """Logs the rows of a run as they come. An entry of TRACKERS makes one."""

    def row(self, row: MetricsRow) -> None:
        """Log an epoch: its row of metrics.jsonl, with its times."""

    def result(self, result: Mapping[str, Any]) -> None:
        """Log the final measurement."""

    def close(self) -> None:
        """Write what is still buffered."""


def finite_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row: its finite numbers, without epoch and step."""
    return {
        key: float(value)
        for key, value in row.items()
        if key not in NOT_METRICS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


class TensorBoard:
    """Event files in RUN/tensorboard, written anew from the history at each start.

    A resumed run so has every epoch exactly once, whatever files the stopped one left.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any], history: list[MetricsRow]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer: Any = SummaryWriter(str(place))
        text = json.dumps(info["recipe"], indent=1)
        self.writer.add_text("recipe", f"```json\n{text}\n```")
        for row in history:
            self.row(row)

    def row(self, row: MetricsRow) -> None:
        """One scalar per metric at the epoch's optimizer step."""
        for key, value in finite_numbers(row).items():
            self.writer.add_scalar(key, value, row["step"])
        self.writer.flush()  # so that TensorBoard shows the epoch as soon as it ends

    def result(self, result: Mapping[str, Any]) -> None:
        """The final measurement, under result/."""
        for key, value in finite_numbers(result).items():
            self.writer.add_scalar(f"result/{key}", value, 0)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class MLflow:
    """An MLflow run in $MLFLOW_TRACKING_URI, else in mlflow.db (sqlite) beside the run folders.

    RUN/mlflow.json keeps its id: a resumed run continues there, and logs no step twice.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any], history: list[MetricsRow]) -> None:
        with _silent_mlflow():
            from mlflow.tracking import MlflowClient

            folder = folder.resolve()
            default = f"sqlite:///{folder.parent / 'mlflow.db'}"
            uri = os.environ.get("MLFLOW_TRACKING_URI") or default
            self.client = MlflowClient(tracking_uri=uri)
            self.run_id = self._known(folder, uri) or self._create(folder, uri, info)
            done = self.client.get_metric_history(self.run_id, "train_loss")
        self.last = max((metric.step for metric in done), default=-1)
        for row in history:
            self.row(row)

    def _known(self, folder: Path, uri: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            kept = parse_json(read_file(folder / "mlflow.json"))
            if kept["uri"] == uri:
                self.client.update_run(kept["run_id"], status="RUNNING")
                return str(kept["run_id"])
        except (OSError, ValueError, KeyError, MlflowException):
            pass  # none yet, or its store was deleted: a new run gets the whole history
        return None

    def _create(self, folder: Path, uri: str, info: Mapping[str, Any]) -> str:
        name = "leanres"
        experiment = self.client.get_experiment_by_name(name)
        place = str(folder.parent / "mlartifacts") if uri.startswith("sqlite") else None
        number = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(name, artifact_location=place)
        )
        tags = {"leanres.folder": str(folder), "leanres.commit": str(info.get("commit"))}
        run_id = str(self.client.create_run(number, tags=tags, run_name=folder.name).info.run_id)
        for key, value in info["recipe"].items():
            self.client.log_param(run_id, key, json.dumps(value)[:6000])  # MLflow's own limit
        known = {"uri": uri, "run_id": run_id}
        write_bytes(folder / "mlflow.json", json.dumps(known).encode())
        return run_id

    def row(self, row: MetricsRow) -> None:
        """One metric each at the epoch's optimizer step, unless that step was logged before."""
        if row["step"] <= self.last:
            return
        for key, value in finite_numbers(row).items():
            self.client.log_metric(self.run_id, key, value, step=row["step"])
        self.last = row["step"]

    def result(self, result: Mapping[str, Any]) -> None:
        """The final measurement, as result.accuracy and so on."""
        for key, value in finite_numbers(result).items():
            self.client.log_metric(self.run_id, f"result.{key}", value)
        self.client.set_terminated(self.run_id, "FINISHED")

    def close(self) -> None:
        """Nothing is buffered: each metric is in the store once it is logged."""


@contextmanager
def _silent_mlflow() -> Iterator[None]:
    """Silence the log of MLflow's first start, which lists every table that it creates."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


TRACKERS: Table[Callable[[Path, Mapping[str, Any], list[MetricsRow]], Tracker]] = Table(
    "tracker", {"tensorboard": TensorBoard, "mlflow": MLflow}
)


def check_trackers(names: str) -> list[str]:
    """Split "tensorboard,mlflow". UserError for an unknown name or a library not installed."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        TRACKERS[name]
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--track {name}: {name} is not installed: pip install 'leanres[track]'"
            )
    return chosen


class Trackers:
    """Several trackers as one. One that fails is disabled, and the run continues without it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.members: dict[str, Tracker] = {}
        self.tell = tell

    def row(self, row: MetricsRow) -> None:
        """Log an epoch in each."""
        self._each(lambda member: member.row(row))

    def result(self, result: Mapping[str, Any]) -> None:
        """Log the final measurement in each."""
        self._each(lambda member: member.result(result))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, member in list(self.members.items()):
            try:
                call(member)
            except Exception as error:  # an unreachable server must not end a training
                del self.members[name]
                self.tell(f"logging to {name} is disabled ({first_line(error)}); the run continues")


@contextmanager
def open_trackers(
    names: list[str],
    folder: Path,
    info: Mapping[str, Any],
    history: list[MetricsRow],
    tell: Callable[[str], None],
) -> Iterator[Trackers]:
    """The named trackers, with the epochs in `history` logged; closed when the context ends.

    UserError for one that cannot be opened. `tell` gets one line where one fails later.
    """
    with ExitStack() as stack:
        trackers = Trackers(tell)
        for name in names:
            try:
                trackers.members[name] = TRACKERS[name](folder, info, history)
            except Exception as error:
                raise UserError(
                    f"--track {name}: {first_line(error)}; `leanres resume {folder}` trains it"
                ) from error
            stack.callback(trackers.members[name].close)
        yield trackers
