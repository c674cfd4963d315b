"""Log a run's metrics to TensorBoard, MLflow and Weights & Biases while it trains.

Trackers get the rows that metrics.jsonl is written from, and measure nothing themselves. Their
libraries are optional: `pip install 'leanres[track]'`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from leanres.errors import UserError, first_line
from leanres.io import parse_json, read_file, write_bytes
from leanres.registry import Table

if TYPE_CHECKING:
    from leanres.training.loop import MetricsRow

T = TypeVar("T")
NOT_METRICS = ("epoch", "step")
ANSWER_S = 10.0  # a tracker that takes longer to answer is given up
NO_ANSWER = f"no answer in {ANSWER_S:.0f} s"


class Tracker(Protocol):
    """Logs the rows of a run as they come. An entry of TRACKERS makes one, without a server."""

    def begin(self, history: list[MetricsRow]) -> None:
        """Open the run where it is kept, and log the epochs in `history`."""

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

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.recipe, place = info["recipe"], folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer: Any = SummaryWriter(str(place))

    def begin(self, history: list[MetricsRow]) -> None:
        """Write the recipe and the epochs so far."""
        text = json.dumps(self.recipe, indent=1)
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

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        with _silent_mlflow():
            from mlflow.tracking import MlflowClient
            from sqlalchemy.engine import URL

            self.folder, self.info = folder.resolve(), info
            # URL escapes "?" and "%" in a folder's name. For "sqlite://" without a driver MLflow
            # would create the folder of the escaped name, too.
            default = URL.create("sqlite+pysqlite", database=str(self.folder.parent / "mlflow.db"))
            given = os.environ.get("MLFLOW_TRACKING_URI")
            self.uri: str = given or default.render_as_string()
            self.client = MlflowClient(tracking_uri=self.uri)  # makes the tables of a new file

    def begin(self, history: list[MetricsRow]) -> None:
        """Continue the run, or create one, and log the epochs that it does not have."""
        self.run_id = self._known() or self._create()
        done = self.client.get_metric_history(self.run_id, "train_loss")
        self.last = max((metric.step for metric in done), default=-1)
        for row in history:
            self.row(row)

    def _known(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            kept = parse_json(read_file(self.folder / "mlflow.json"))
            if kept["uri"] == self.uri:
                self.client.update_run(kept["run_id"], status="RUNNING")
                return str(kept["run_id"])
        except (OSError, ValueError, KeyError, MlflowException):
            pass  # none yet, or its store was deleted: a new run gets the whole history
        return None

    def _create(self) -> str:
        name, folder, info = "leanres", self.folder, self.info
        experiment = self.client.get_experiment_by_name(name)
        place = str(folder.parent / "mlartifacts") if self.uri.startswith("sqlite") else None
        number = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(name, artifact_location=place)
        )
        tags = {"leanres.folder": str(folder), "leanres.commit": str(info.get("commit"))}
        run_id = str(self.client.create_run(number, tags=tags, run_name=folder.name).info.run_id)
        for key, value in info["recipe"].items():
            self.client.log_param(run_id, key, json.dumps(value)[:6000])  # MLflow's own limit
        known = {"uri": self.uri, "run_id": run_id}
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


class WandB:
    """An offline run of Weights & Biases in RUN/wandb, which `wandb sync` uploads.

    It is written anew from the history at each start, under the id that it had.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        import wandb

        earlier = list((folder / "wandb").glob("offline-run-*-*"))
        for old in earlier:
            shutil.rmtree(old)
        self.run: Any = wandb.init(
            project="leanres",
            name=folder.resolve().name,
            id=earlier[0].name.rpartition("-")[2] if earlier else secrets.token_hex(4),
            dir=folder,
            mode="offline",
            resume="allow",
            reinit="create_new",  # beside other runs of this process
            config={**info["recipe"], "leanres.commit": info.get("commit")},
            settings=wandb.Settings(silent=True, console="off"),
        )

    def begin(self, history: list[MetricsRow]) -> None:
        """Write the epochs so far."""
        for row in history:
            self.row(row)

    def row(self, row: MetricsRow) -> None:
        """The metrics at the epoch's optimizer step."""
        self.run.log(finite_numbers(row), step=row["step"])

    def result(self, result: Mapping[str, Any]) -> None:
        """The final measurement, in the summary as result.accuracy and so on."""
        found = finite_numbers(result)
        self.run.summary.update({f"result.{key}": value for key, value in found.items()})

    def close(self) -> None:
        """End the run: what is buffered is written."""
        self.run.finish()


TRACKERS: Table[Callable[[Path, Mapping[str, Any]], Tracker]] = Table(
    "tracker", {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
)


def check_trackers(names: str) -> list[str]:
    """Split "tensorboard,mlflow". UserError for an unknown name or a library not installed."""
    chosen = [name.strip() for name in names.split(",")] if names else []
    for name in chosen:
        TRACKERS[name]
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--track {name}: {name} is not installed: pip install 'leanres[track]'"
            )
    return chosen


def answer_within(wait_s: float | None, call: Callable[..., T], *args: Any) -> T:
    """What a call returns or raises; TimeoutError if it takes longer, and it is left to itself."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call(*args))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()  # a daemon: the process ends without it
    return answer.result(wait_s)


class Trackers:
    """Several trackers as one. One that fails is disabled, and the run continues without it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.members: dict[str, Tracker] = {}
        self.tell = tell

    def open(
        self, name: str, folder: Path, info: Mapping[str, Any], history: list[MetricsRow]
    ) -> None:
        """Add a tracker, unless it does not answer. UserError for one that cannot be opened."""
        try:
            # No limit for what is local: importing a library and creating its files.
            member = TRACKERS[name](folder, info)
            answer_within(ANSWER_S, member.begin, history)
        except TimeoutError:
            self._disabled(name, NO_ANSWER)
        except Exception as error:
            raise UserError(
                f"--track {name}: {first_line(error)}; `leanres resume {folder}` trains it"
            ) from error
        else:
            self.members[name] = member

    def row(self, row: MetricsRow) -> None:
        """Log an epoch in each."""
        self._each(lambda member: member.row(row))

    def result(self, result: Mapping[str, Any]) -> None:
        """Log the final measurement in each."""
        self._each(lambda member: member.result(result))

    def close(self) -> None:
        """Write what is still buffered in each."""
        self._each(lambda member: member.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, member in list(self.members.items()):
            try:
                answer_within(ANSWER_S, call, member)
            except TimeoutError:
                self._disabled(name, NO_ANSWER)
            except Exception as error:  # an unreachable server must not end a training
                self._disabled(name, first_line(error))

    def _disabled(self, name: str, why: str) -> None:
        self.members.pop(name, None)
        self.tell(f"logging to {name} is disabled ({why}); the run continues")


@contextmanager
def open_trackers(
    names: list[str],
    folder: Path,
    info: Mapping[str, Any],
    history: list[MetricsRow],
    tell: Callable[[str], None],
) -> Iterator[Trackers]:
    """The named trackers, with the epochs in `history` logged; closed when the context ends.

    UserError for one that cannot be opened. `tell` gets one line where one fails later, or does
    not answer for ANSWER_S seconds.
    """
    trackers = Trackers(tell)
    try:
        for name in names:
            trackers.open(name, folder, info, history)
        yield trackers
    finally:
        trackers.close()
