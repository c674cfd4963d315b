"""What Ray is asked for and what its machines do; tests/cluster has the real one."""

from __future__ import annotations

import random
import signal
import threading

import pytest

from cluster_simulation import Machines, trainings
from cluster_simulation import plan as simulated_plan
from leanres.errors import UserError
from leanres.runs.run_json import read_info
from leanres.trials import cluster, node
from leanres.trials.cluster import _count, _share
from leanres.trials.node import Node, look


def machines(*sizes):
    return [{"Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in sizes]


@pytest.mark.parametrize(
    ("sizes", "asked", "share", "fit"),
    [
        ([(4, 0), (2, 0)], {}, (1, 0), 6),
        ([(4, 0), (2, 0)], {"threads": 2}, (2, 0), 3),
        ([(4, 0), (2, 0)], {"threads": 4}, (4, 0), 1),
        ([(4, 0), (4, 0)], {"at_once": 2}, (4, 0), 2),
        ([(4, 0), (4, 0)], {"at_once": 1}, (4, 0), 2),  # no more than a machine has
        ([(4, 0), (2, 0)], {"exclusive": True}, (4, 0), 1),
        ([(16, 2), (16, 4)], {}, (4, 1), 6),
        ([(16, 2), (64, 0)], {}, (8, 1), 2),
        ([(16, 2), (64, 0)], {"device": "cpu"}, (1, 0), 80),
        ([(16, 2)], {"at_once": 4}, (4, 0.5), 4),
        ([(16, 2)], {"at_once": 1}, (8, 1), 2),
        ([(16, 2)], {"exclusive": True, "at_once": 1}, (16, 1), 1),
    ],
)
def test_a_job_has_its_share_of_the_machines(sizes, asked, share, fit):
    settings = {"device": "auto", "at_once": 0, "threads": 0, "exclusive": False} | asked
    assert _share(machines(*sizes), **settings) == share
    assert _count(machines(*sizes), *share) == fit


@pytest.mark.parametrize(
    ("device", "threads", "said"),
    [
        ("cuda", 0, "--devices cuda: no machine of the cluster has a GPU"),
        ("auto", 5, r"has the CPUs of a job \(5\): lower --threads"),
    ],
)
def test_what_no_machine_has_is_said(device, threads, said):
    with pytest.raises(UserError, match=said):
        _share(machines((4, 0), (2, 0)), device, 0, threads, False)


def test_without_ray_it_says_what_to_install(leanres, plan, monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    done = leanres("campaign", plan, "--executor", "ray")
    assert (done.code, done.out) == (2, "")
    assert done.err == "leanres: --executor ray needs Ray: pip install 'leanres[cluster]'\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "--address is a Ray cluster's: add --executor ray"),
        (["--executor", "ray", "--devices", "cuda:0,cuda:1"], "give auto, cuda or cpu"),
    ],
)
def test_options_that_do_not_fit_are_one_line(leanres, plan, words, said):
    done = leanres("campaign", plan, *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(UserError, match="give HOST:PORT of the cluster's head, or auto"):
        cluster._check_head(address)


@pytest.fixture
def run(tmp_path):
    """A run folder that the machine sees, and what `Node.run` is given beside a program."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder, tmp_path / "run.log", {"GIVEN": "yes", "PATH": "not this one"}


def test_a_machine_runs_a_process_and_says_how_it_ended(run, monkeypatch):
    monkeypatch.setenv("PATH", "its own")
    run[1].write_text("the line of another process\n")
    code = "import os, sys; print(os.environ['GIVEN'], os.environ['PATH']); sys.exit(4)"
    end = Node().run(["-c", code], *run)
    assert (end.code, end.line) == (4, "yes its own")
    assert end.files == node.listing(run[0])
    (run[0] / "run.json").write_text("{ }")
    assert end.files != node.listing(run[0])
    assert Node().run(["-c", ""], *run).line == "its log is empty"


@pytest.mark.parametrize("early", [False, True])
def test_a_process_is_told_to_stop_also_before_it_starts(run, early):
    there, wait = Node(), ["-c", "import time; time.sleep(60)"]
    if early:
        there.stop()
    else:
        threading.Timer(0.2, there.stop).start()
    assert there.run(wait, *run).code == -signal.SIGTERM


def test_a_process_reads_the_end_of_its_machine_on_stdin(run):
    there = Node()
    threading.Timer(0.2, lambda: there._process.stdin.close()).start()
    assert there.run(["-c", "import sys; sys.stdin.read(); sys.exit(7)"], *run).code == 7


def test_a_folder_that_a_machine_sees_late_is_waited_for_and_one_it_does_not_see_is_said(
    run, tmp_path, monkeypatch
):
    (run[0] / "run.json").unlink()
    threading.Timer(0.3, (run[0] / "run.json").touch).start()
    assert Node().run(["-c", ""], *run).code == 0
    monkeypatch.setattr(node, "VISIBLE_S", 0.1)
    unseen = Node().run(["-c", ""], tmp_path / "other", *run[1:])
    assert unseen.code == 2
    assert unseen.line.endswith(f"does not see {tmp_path / 'other'}: is it shared?")


def test_a_machine_that_shares_the_folder_answers_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "LOOK_S", 0.1)
    (tmp_path / "token").write_bytes(b"mine")
    assert look(tmp_path / "token", b"mine", "answer").problem == ""
    assert (tmp_path / "answer").exists()
    assert look(tmp_path / "token", b"mine", 300 * "x").problem == "cannot write to"
    assert look(tmp_path / "token", b"another's", "no").problem == "does not see"
    assert look(tmp_path / "missing" / "token", b"mine", "no").problem == "does not see"
    assert not (tmp_path / "no").exists()


def test_a_cluster_that_fails_loses_no_job_and_ends_none_twice(three_runs, tmp_path):
    """In small what benchmarks/cluster_simulation.py does with 10,000 jobs on 512 machines."""
    rng = random.Random(0)
    jobs, poisoned = simulated_plan(tmp_path, 40, 1, rng)
    failing = Machines(12, 0.2, rng, read_info(three_runs / "plain"), poisoned)
    done = trainings(failing, jobs, killed_every_h=5.0)
    assert (done["finished"], done["failed"]) == (39, sorted(poisoned))
    assert done["trained_to_the_end_twice"] == 0
    assert done["machines_lost"] > 10 < done["retried"]
    assert done["commands_killed"] > 0
    assert done["machine_hours"] >= done["machine_hours_without_failures"]
