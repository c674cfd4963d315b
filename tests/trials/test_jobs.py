"""A job is its run folder; every executor gives the same run, whatever happens to its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from leanres.data.sources import locate
from leanres.errors import UserError
from leanres.io import LOCK_WAIT_S, Lock
from leanres.models.resnet import ResNetConfig
from leanres.runs.checkpoint import saved
from leanres.runs.fit import fit
from leanres.runs.layout import CHECKPOINTS, HISTORY
from leanres.runs.run import enqueue
from leanres.runs.run_json import read_info
from leanres.runs.stop import Stopped
from leanres.training.recipes import RECIPES
from leanres.trials import executors, worker
from leanres.trials.executors import InProcess, LocalProcesses, local_executor
from leanres.trials.jobs import Event, Job, ensure, is_finished, run_jobs, stopped

DIGITS = locate("digits")


class Instant:
    """An executor that does nothing: each submitted job ends when `events` is called next."""

    def __init__(self, slots=1, kinds=()):
        self.slots, self.kinds = slots, dict(kinds)
        self.running, self.most, self.told = [], 0, False

    def submit(self, job):
        self.running.append(job)
        self.most = max(self.most, len(self.running))

    def events(self, deadline):
        job = self.running.pop(0)
        yield stopped(job) if self.told else Event(self.kinds.get(job.folder.name, "finished"), job)

    def stop(self):
        self.told = bool(self.running)


class Flaky(Instant):
    """Loses its jobs at these ends, after so many more epochs; then they finish."""

    retries = 2

    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def events(self, halted):
        job = self.running.pop(0)
        if not self.losses:
            yield Event("finished", job)
            return
        with (job.folder / HISTORY).open("a") as history:
            for _ in range(self.losses.pop(0)):
                history.write('{"epoch": 1}\n')
        yield Event("lost", job, "power")


def told(events) -> list[str]:
    return [f"{event.kind} {event.job.folder.name}" for event in events]


@pytest.fixture
def jobs(tmp_path, tiny):
    return [Job(replace(tiny, seed=i), tmp_path / f"run-{i}", DIGITS) for i in range(3)]


def test_a_job_is_queued_then_finished_and_another_recipe_is_refused(
    tmp_path, tiny, digits, device
):
    job = Job(replace(tiny, epochs=1), tmp_path / "run", DIGITS | {"measure": "test"})
    assert not ensure(job)
    assert read_info(job.folder, queued=True)["origin"] == job.origin
    assert not ensure(job)  # it waits to be trained
    assert told(run_jobs([job], InProcess(digits, device))) == ["started run", "finished run"]
    assert ensure(job)
    assert told(run_jobs([job], Instant())) == ["finished run"]
    with pytest.raises(UserError, match="run holds a run of another recipe: name another folder"):
        ensure(replace(job, recipe=tiny))
    with pytest.raises(UserError, match="was trained on other data"):
        is_finished(job, replace(digits, train=digits.train.subset(range(900))))
    assert not is_finished(replace(job, origin={"measure": "val"}))


@pytest.mark.parametrize("measure", ["test", "val"])
def test_a_job_that_cannot_be_measured_is_refused(tmp_path, tiny, digits, measure):
    job = Job(tiny, tmp_path / "run", {"measure": measure})
    with pytest.raises(UserError, match=f"measure {measure}: the data has no such split"):
        is_finished(job, replace(digits, test=None))
    assert not job.folder.exists()


def test_jobs_run_in_order_as_many_at_once_as_there_are_slots(jobs):
    one, two = Instant(1), Instant(2)
    in_turn = [f"{kind} run-{i}" for i in range(3) for kind in ("started", "finished")]
    assert told(run_jobs(jobs, one)) == in_turn
    assert one.most == 1
    assert told(run_jobs(jobs, two))[:3] == ["started run-0", "started run-1", "finished run-0"]
    assert two.most == 2


def test_a_failed_job_stops_no_other_and_leaves_no_empty_folder(jobs):
    events = list(run_jobs(jobs, Instant(1, {"run-1": "failed"})))
    assert [event.kind for event in events if event.kind != "started"] == [
        "finished",
        "failed",
        "finished",
    ]
    assert [job.folder.exists() for job in jobs] == [True, False, True]


def test_after_the_deadline_nothing_starts_and_what_runs_is_stopped(jobs):
    assert told(run_jobs(jobs, Instant(2), time.monotonic() - 1)) == []
    executor = Instant(2)
    events = run_jobs(jobs, executor, time.monotonic() + 0.5)
    assert next(events).kind == "started"
    time.sleep(0.6)
    assert told(events) == ["stopped run-0"]


def test_jobs_may_come_from_a_function_as_the_events_are_seen(jobs):
    waiting, seen = jobs[:1], []
    for event in run_jobs(lambda: waiting.pop() if waiting else None, Instant()):
        seen.append(event.job)
        if event.kind == "finished" and event.job is jobs[0]:
            waiting.append(jobs[2])
    assert seen == [jobs[0], jobs[0], jobs[2], jobs[2]]


def test_a_job_in_parts_equals_the_uninterrupted_run(tmp_path, small, digits, device, digest):
    job = Job(replace(small, precision="float32"), tmp_path / "parts", DIGITS, until_epoch=1)
    executor = InProcess(digits, device)
    *_, event = run_jobs([job], executor)
    assert event.kind == "finished"
    assert "result" not in read_info(job.folder)
    *_, event = run_jobs([replace(job, until_epoch=None)], executor)
    fit(tmp_path / "whole", job.recipe, digits, device)
    assert digest(job.folder) == digest(tmp_path / "whole")


def test_in_this_process_a_deadline_stops_between_steps_and_a_signal_is_passed_on(
    tmp_path, tiny, digits, device, monkeypatch
):
    job = Job(replace(tiny, epochs=300), tmp_path / "run", DIGITS)
    executor = InProcess(digits, device)
    events = list(run_jobs([job], executor, time.monotonic() + 1))
    assert [event.kind for event in events] == ["started", "stopped"]
    assert "of 300 epochs are done" in events[1].detail
    real, seen = executors.train, []

    def signalled(job, load, device, halted, log=print):
        def interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            return halted()

        return real(job, load, device, interrupt)

    monkeypatch.setattr(executors, "train", signalled)
    with pytest.raises(Stopped) as stop:
        seen.extend(run_jobs([job, replace(job, folder=tmp_path / "next")], executor))
    assert stop.value.number == signal.SIGTERM
    assert not (tmp_path / "next").exists()


def test_a_diverging_job_and_one_that_does_not_fit_the_data_are_told_apart(
    tmp_path, tiny, digits, device
):
    wild = replace(RECIPES["plain-sgd"], model=ResNetConfig((8, 8), (1, 1)), lr=1e3)
    wild = replace(wild, augment=(), warmup=0.0, epochs=3, val=0)
    broken = replace(tiny, augment=(("crop", {"padding": 40, "mode": "reflect"}),))
    jobs = [Job(wild, tmp_path / "wild"), Job(broken, tmp_path / "broken")]
    events = list(run_jobs(jobs, InProcess(digits, device)))
    assert told(events)[1::2] == ["diverged wild", "failed broken"]
    assert "augment" in events[3].detail
    assert not (tmp_path / "broken").exists()


class FakeProcess:
    """Stands for a subprocess that has ended already, with the next of `codes`."""

    codes: list[int]
    commands: list[list[str]]
    says: bytes
    stdin = None

    def __init__(self, command, **options):
        options["stdout"].write(self.says)
        self.commands.append(command)
        self.returncode = self.codes.pop(0)

    def wait(self, timeout):
        return self.returncode

    def poll(self):
        return self.returncode

    def terminate(self):
        pass


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(FakeProcess, "codes", [], raising=False)
    monkeypatch.setattr(FakeProcess, "commands", [], raising=False)
    monkeypatch.setattr(FakeProcess, "says", b"", raising=False)
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    return FakeProcess


def test_jobs_are_dealt_over_the_devices(jobs, processes):
    processes.codes += [2, 2, 2]
    executor = LocalProcesses(2, ["cuda:0", "cuda:1"], threads=3)
    events = run_jobs(jobs, executor)
    assert told(next(events) for _ in range(2)) == ["started run-0", "started run-1"]
    options = [json.loads(command[-1])["origin"] for command in processes.commands]
    assert [(own["device"], own["threads"]) for own in options] == [("cuda:0", 3), ("cuda:1", 3)]
    assert told(events)[-1] == "failed run-2"
    assert json.loads(processes.commands[2][-1])["origin"]["device"] in ("cuda:0", "cuda:1")


def test_a_folder_that_another_process_trains_in_is_left_to_it(
    jobs, digits, device, processes, monkeypatch
):
    """Neither executor calls that a failure, and the run is not touched."""
    monkeypatch.setattr(worker, "LOCK_WAIT_S", 0.05)
    job = jobs[0]
    ensure(job)
    before = (job.folder / "run.json").read_bytes()
    lock = Lock(job.folder)
    here = list(run_jobs([job], InProcess(digits, device)))
    processes.codes += [worker.EXIT_CODES["in use"]]
    processes.says = f"leanres: {job.folder} is in use\n".encode()
    there = list(run_jobs([job], LocalProcesses()))
    lock.release()
    assert told(here) == told(there) == ["started run-0", "in use run-0"]
    for events in (here, there):
        assert events[-1].detail.startswith(f"{job.folder} is in use")
    assert (job.folder / "run.json").read_bytes() == before


@pytest.mark.usefixtures("_one_thread")
def test_two_that_run_one_job_at_once_train_it_once_and_read_test_once(tmp_path, tiny):
    job = Job(tiny, tmp_path / "run", DIGITS)
    first, second = (run_jobs([job], LocalProcesses(1, ["cpu"], threads=1)) for _ in range(2))
    assert told([next(first), next(second)]) == ["started run"] * 2
    ends = told([*second, *first])
    assert "finished run" in ends
    assert {*ends} <= {"finished run", "in use run"}  # under load one waits longer than it may
    info = read_info(job.folder)
    assert info["test_reads"] == 1
    assert "resumed" not in info


def test_a_folder_that_another_process_has_just_made_is_taken(jobs, monkeypatch):
    def quicker(*given):
        enqueue(*given)
        enqueue(*given)  # refuses what is there

    monkeypatch.setattr("leanres.trials.jobs.enqueue", quicker)
    assert not ensure(jobs[0])
    jobs[1].folder.mkdir()
    (jobs[1].folder / "notes.txt").touch()
    with pytest.raises(UserError, match="exists already"):
        ensure(jobs[1])


def test_a_lost_process_is_tried_once_more_and_no_more(jobs, processes):
    processes.codes += [-signal.SIGKILL, -signal.SIGSEGV]
    processes.says = b"first\nthe last line\n\n"
    events = list(run_jobs(jobs[:1], LocalProcesses()))
    assert [event.kind for event in events] == ["started", "retried", "failed"]
    assert events[1].detail == "signal 9 killed its process: the last line"
    assert events[2].detail == "signal 11 killed its process: the last line"


@pytest.mark.parametrize(
    ("losses", "end"), [([0, 0], "finished"), ([0, 0, 0], "failed"), ([1, 0, 1, 0, 1], "finished")]
)
def test_losses_are_counted_from_the_last_new_epoch(jobs, losses, end):
    lost = len(losses) - (end == "failed")
    *begun, last = run_jobs(jobs[:1], Flaky(losses))
    assert told(begun) == ["started run-0", *["retried run-0"] * lost]
    assert (last.kind, last.detail) == (end, "power" if end == "failed" else "")


def test_a_job_that_is_lost_while_all_stop_is_not_tried_again(jobs):
    events = run_jobs(jobs[:1], Flaky([0]), time.monotonic() + 0.2)
    assert next(events).kind == "started"
    time.sleep(0.3)
    assert told(events) == ["stopped run-0"]


def test_a_process_that_was_stopped_from_outside_is_not_tried_again(jobs, processes):
    processes.codes += [128 + signal.SIGTERM]
    assert told(run_jobs(jobs[:1], LocalProcesses())) == ["started run-0", "stopped run-0"]


def test_a_process_saves_and_ends_when_its_parent_was_killed(tmp_path, tiny):
    job = Job(replace(tiny, epochs=100_000), tmp_path / "run", DIGITS)
    enqueue(job.folder, job.recipe, job.origin)
    script = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as Of\n"
        "from leanres.trials.executors import LocalProcesses\n"
        "job = Of(folder=Path(sys.argv[1]), origin={'device': 'cpu'}, until_epoch=None)\n"
        "LocalProcesses(1, ['cpu'], threads=1).submit(job)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", script, str(job.folder)]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE)
    log = executors.log_file(job)
    while not log.exists() or "epoch" not in log.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    Lock(job.folder, wait_s=LOCK_WAIT_S).release()  # its process has ended
    step = int(saved(job.folder / CHECKPOINTS)[0].name)
    time.sleep(1)
    assert int(saved(job.folder / CHECKPOINTS)[0].name) == step > 0


def test_only_what_a_process_wrote_itself_is_its_reason(jobs, processes):
    executors.log_file(jobs[0]).write_text("the last line of a process that was killed\n")
    processes.codes += [1]
    assert [event.detail for event in run_jobs(jobs[:1], LocalProcesses())][1:] == [
        "it ended with 1: its log is empty"
    ]


def test_one_job_at_a_time_runs_in_this_process_and_more_in_their_own(digits, tiny):
    assert isinstance(local_executor(digits, tiny, ["cpu"]), InProcess)
    assert isinstance(local_executor(digits, tiny, ["cpu", "cpu"], at_once=1), InProcess)
    both, four = (local_executor(digits, tiny, ["cpu", "cpu"], at_once=n) for n in (0, 4))
    assert (both.slots, four.slots) == (2, 4)
    assert four.threads == max(1, os.cpu_count() // 4)
    with pytest.raises(UserError, match="device 'tpu' is not usable here"):
        local_executor(digits, tiny, ["cpu", "tpu"])
