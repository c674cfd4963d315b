"""The metric stream as the real TensorBoard, MLflow and Weights & Biases hold it."""

from __future__ import annotations

import importlib.util
import json
import socket
import struct
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from leanres.errors import UserError
from leanres.runs.tracking import TRACKERS, check_trackers, finite_numbers, open_trackers

HISTORY = [
    {"epoch": 1, "step": 10, "train_loss": 2.5, "val_accuracy": 0.5, "lr": 0.1, "seconds": 3.0},
    {"epoch": 2, "step": 20, "train_loss": 1.5, "val_accuracy": 0.75, "lr": 0.05, "seconds": 2.0},
]
NEXT = {"epoch": 3, "step": 30, "train_loss": 0.5, "val_accuracy": 0.875, "lr": 0.0, "seconds": 2.5}
RESULT = {"split": "test", "accuracy": 0.875, "nll": 0.5, "per_class": [1.0], "tta": "none"}
INFO = {"recipe": {"model": "speednet", "lr": 0.1, "augment": [["crop", {}]]}, "commit": "abc"}


def needs(library: str):
    there = importlib.util.find_spec(library) is not None
    return pytest.mark.skipif(
        not there, reason=f"{library} is not installed (pip install 'leanres[track]')"
    )


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """The libraries' own warnings are not ours, and no server of the user's is written to."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    return tmp_path / "runs" / "mine"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@needs("tensorboard")
def test_tensorboard_holds_every_epoch_while_the_run_continues(run):
    with open_trackers(["tensorboard"], run, INFO, HISTORY, print) as trackers:
        assert scalars(run)["train_loss"] == [(10, 2.5), (20, 1.5)]
        trackers.row(NEXT)
        assert scalars(run)["train_loss"][-1] == (30, 0.5)  # live, not only at the end
        trackers.result(RESULT)
    held = scalars(run)
    assert held["val_accuracy"] == [(10, 0.5), (20, 0.75), (30, 0.875)]
    assert held["result/accuracy"] == [(0, 0.875)]
    assert "epoch" not in held
    assert "result/split" not in held


@needs("tensorboard")
def test_a_resumed_run_has_every_epoch_once_in_tensorboard(run):
    for history in ([], HISTORY, HISTORY[:1]):
        with open_trackers(["tensorboard"], run, INFO, history, print) as trackers:
            trackers.row(NEXT)
    assert scalars(run)["train_loss"] == [(10, 2.5), (30, 0.5)]


@needs("mlflow")
def test_mlflow_holds_the_recipe_the_epochs_and_the_result(run):
    from mlflow.tracking import MlflowClient

    with open_trackers(["mlflow"], run, INFO, HISTORY, print) as trackers:
        kept = json.loads((run / "mlflow.json").read_text())
        client = MlflowClient(tracking_uri=kept["uri"])

        def losses() -> list[tuple[int, float]]:
            found = client.get_metric_history(kept["run_id"], "train_loss")
            return [(metric.step, metric.value) for metric in found]

        assert losses() == [(10, 2.5), (20, 1.5)]
        trackers.row(NEXT)
        assert losses()[-1] == (30, 0.5)
        assert client.get_run(kept["run_id"]).info.status == "RUNNING"
        trackers.result(RESULT)
    assert (run.parent / "mlflow.db").exists()
    stored = client.get_run(kept["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"model": '"speednet"', "lr": "0.1", "augment": '[["crop", {}]]'}
    assert stored.data.metrics["result.accuracy"] == 0.875
    assert stored.data.tags["leanres.commit"] == "abc"

    # resumed: the same run, no step twice
    with open_trackers(["mlflow"], run, INFO, [*HISTORY, NEXT], print) as trackers:
        trackers.row({**NEXT, "epoch": 4, "step": 40})
    assert json.loads((run / "mlflow.json").read_text()) == kept
    assert [step for step, _ in losses()] == [10, 20, 30, 40]
    assert client.get_run(kept["run_id"]).info.status == "RUNNING"

    # its store is gone: a new run is made of the history
    (run / "mlflow.json").write_text(json.dumps({**kept, "run_id": "0" * 32}))
    with open_trackers(["mlflow"], run, INFO, HISTORY, print):
        pass
    assert json.loads((run / "mlflow.json").read_text())["run_id"] not in (kept["run_id"], "0" * 32)


@needs("mlflow")
@pytest.mark.parametrize("name", ["a%20b", "a?b#c"])
def test_mlflow_keeps_its_store_beside_a_run_of_any_name(tmp_path, name):
    folder = tmp_path / name / "mine"
    folder.mkdir(parents=True)
    with open_trackers(["mlflow"], folder, INFO, HISTORY, print):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mine", "mlflow.db"]


@needs("mlflow")
def test_a_server_that_accepts_but_never_answers_is_given_up(run, monkeypatch):
    monkeypatch.setattr("leanres.runs.tracking.ANSWER_S", 0.5)
    told = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with open_trackers(["mlflow"], run, INFO, HISTORY, told.append) as trackers:
            trackers.row(NEXT)
            trackers.result(RESULT)
    assert told == ["logging to mlflow is disabled (no answer in 10 s); the run continues"]


def records(folder: Path) -> list[Any]:
    """What the one .wandb file below a run folder holds, up to the record of the run's exit."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 30  # wandb's own process still writes when `finish` has returned
    while not (found := parsed(file.read_bytes())) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def parsed(data: bytes) -> list[Any]:
    """The whole protobuf messages of a LevelDB log, behind wandb's own 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, message, found = 7, b"", []
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:  # padding at a block's end
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):  # not written to its end yet
            break
        if kind in (1, 4):  # whole, or its last part
            found.append(Record.FromString(message))
            message = b""
    return found


def logged(folder: Path, key: str) -> list[tuple[int, float]]:
    rows = [r.history for r in records(folder) if r.WhichOneof("record_type") == "history"]
    items = [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in r.item} for r in rows]
    return [(item["_step"], item[key]) for item in items if key in item]


@needs("wandb")
def test_wandb_holds_the_recipe_every_epoch_once_and_the_result(run):
    with open_trackers(["wandb"], run, INFO, HISTORY, print) as trackers:
        trackers.row(NEXT)
        trackers.result(RESULT)
    assert logged(run, "train_loss") == [(10, 2.5), (20, 1.5), (30, 0.5)]
    assert logged(run, "val_accuracy") == [(10, 0.5), (20, 0.75), (30, 0.875)]
    held = records(run)
    (begun,) = (r.run for r in held if r.WhichOneof("record_type") == "run")
    config = {u.key: json.loads(u.value_json) for u in begun.config.update}
    assert {key: config[key] for key in INFO["recipe"]} == INFO["recipe"]
    assert (begun.project, begun.display_name) == ("leanres", "mine")
    assert config["leanres.commit"] == "abc"
    summary = {
        (i.key or ".".join(i.nested_key)): json.loads(i.value_json)
        for r in held
        if r.WhichOneof("record_type") == "summary"
        for i in r.summary.update
    }
    assert summary["result.accuracy"] == 0.875

    # resumed from the first epoch: the same run, no step twice
    with open_trackers(["wandb"], run, INFO, HISTORY[:1], print) as trackers:
        trackers.row(NEXT)
    assert logged(run, "train_loss") == [(10, 2.5), (30, 0.5)]
    (again,) = (r.run for r in records(run) if r.WhichOneof("record_type") == "run")
    assert again.run_id == begun.run_id


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'leanres\[tr"):
            check_trackers(name)
    assert check_trackers("") == []


def test_a_tracker_that_fails_is_disabled_and_said_once(tmp_path, monkeypatch):
    class Flaky:
        def __init__(self, folder, info):
            self.rows = 0

        def begin(self, history):
            pass

        def row(self, row):
            self.rows += 1
            if self.rows > 1:
                raise ConnectionError("the server is away\nsince noon")

        result = row

        def close(self):
            pass

    monkeypatch.setitem(TRACKERS, "mlflow", Flaky)
    told = []
    with open_trackers(["mlflow"], tmp_path, INFO, [], told.append) as trackers:
        for _ in range(3):
            trackers.row(NEXT)
        trackers.result({"accuracy": 0.9})
    assert told == ["logging to mlflow is disabled (the server is away); the run continues"]


@pytest.mark.parametrize("stuck", ["begin", "row", "result", "close"])
def test_a_tracker_that_does_not_answer_is_given_up_and_said_once(tmp_path, monkeypatch, stuck):
    calls, never = [], threading.Event()

    class Stuck:
        def __init__(self, folder, info):
            pass

        def __getattr__(self, name):
            calls.append(name)
            return lambda *_: never.wait(60) if name == stuck else None

    monkeypatch.setitem(TRACKERS, "mlflow", Stuck)
    monkeypatch.setattr("leanres.runs.tracking.ANSWER_S", 0.1)
    told, start = [], time.monotonic()
    with open_trackers(["mlflow"], tmp_path, INFO, [], told.append) as trackers:
        trackers.row(NEXT)
        trackers.result(RESULT)
    assert time.monotonic() - start < 30
    assert told == ["logging to mlflow is disabled (no answer in 10 s); the run continues"]
    assert calls == ["begin", "row", "result", "close"][: len(calls)]
    assert calls[-1] == stuck
    never.set()


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such server")

    monkeypatch.setitem(TRACKERS, "mlflow", refuse)
    with (
        pytest.raises(UserError, match=r"--track mlflow: no such server; `leanres resume"),
        open_trackers(["mlflow"], tmp_path, INFO, [], print),
    ):
        pass


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UserError, match="no tracker 'comet'"):
        check_trackers("comet")
    with pytest.raises(UserError, match="did you mean 'mlflow'"):
        check_trackers("mlflw")
    for text in (",", " ", "tensorboard,"):
        with pytest.raises(UserError, match="no tracker ''"):
            check_trackers(text)


def test_only_finite_numbers_are_metrics():
    row = {"epoch": 1, "step": 2, "a": 1, "b": 0.5, "c": True, "d": "x", "e": float("nan")}
    assert finite_numbers(row) == {"a": 1.0, "b": 0.5}


@needs("tensorboard")
def test_train_and_resume_log_what_metrics_jsonl_holds(tmp_path):
    from leanres.cli import main

    folder = tmp_path / "run"
    network = "model={family='speednet', widths=[8, 16]}"
    words = ["--track", "tensorboard", "--no-report", "--tta", "none"]
    first = ["train", "digits", "--data", "digits", "--out", str(folder), "--epochs", "1"]
    for command in (
        [*first, "--set", network, "--set", "batch_size=400", *words],
        ["resume", str(folder), "--epochs", "2", *words],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert not end.value.code
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held = scalars(folder)
    for key in ("train_loss", "val_accuracy", "gradient_norm"):
        assert [value for _, value in held[key]] == pytest.approx([row[key] for row in rows])
        assert [step for step, _ in held[key]] == [row["step"] for row in rows]
    assert len(held["seconds"]) == 2
    assert not (folder / "report.html").exists()
