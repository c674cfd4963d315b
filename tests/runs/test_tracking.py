"""The metric stream as the real TensorBoard and the real MLflow hold it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

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


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'leanres\[tr"):
            check_trackers(name)
    assert check_trackers("") == []


def test_a_tracker_that_fails_is_disabled_and_said_once(tmp_path, monkeypatch):
    class Flaky:
        def __init__(self, folder, info, history):
            self.rows = 0

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
    with pytest.raises(UserError, match="no tracker 'wandb'"):
        check_trackers("wandb")
    with pytest.raises(UserError, match="did you mean 'mlflow'"):
        check_trackers("mlflw")


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
