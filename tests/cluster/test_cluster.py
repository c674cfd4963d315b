"""Real Ray: whatever is killed, every training is done once, and is the undisturbed one."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from machines import LATE, LATE_S, has_ended, parent, processes, wait_for

PLAN = """
[long]
recipe = "digits"
seeds = [0, 1]
set = ["model={family='speednet', widths=[8]}", "epochs=8", "precision=float32"]
"""
TINY = ["--data", "digits", "--threads", "1", "--set", "precision=float32"]
NETWORK = ["--set", "model={family='speednet', widths=[8]}"]


def training(run: Path) -> dict:
    """What a training is: its weights, the metrics of its epochs, how often test was read."""
    info = json.loads((run / "run.json").read_text())
    rows = (run / "metrics.jsonl").read_text()
    return {"weights": info["result"]["weights"], "rows": rows, "test": info["test_reads"]}


def was_resumed(run: Path) -> bool:
    return "resumed" in json.loads((run / "run.json").read_text())


@pytest.fixture(scope="session")
def undisturbed(cluster):
    """Seed -> the training on this machine, without Ray."""
    plan, runs = cluster.shared / "plan.toml", cluster.shared / "undisturbed"
    plan.write_text(PLAN)
    words = ["campaign", plan, "--runs", runs, *TINY[:4], "--at-once", "2"]
    subprocess.run([sys.executable, "-m", "leanres", *words], cwd=cluster.shared, check=True)
    return [training(runs / f"long-{seed}") for seed in (0, 1)]


@pytest.fixture
def campaign(cluster, undisturbed, request):
    """Start the plan's campaign on the cluster, into a folder of the test's own."""
    name = request.node.name[5:25]
    words = ["campaign", "plan.toml", *TINY[:4], "--runs", name]
    words += ["--results", f"{name}-results", "--weights", f"{name}-weights"]

    def start(**more):
        return cluster.leanres(*words, **more)

    start.run = f"{name}/long-0"
    start.runs = [cluster.shared / name / f"long-{seed}" for seed in (0, 1)]
    start.entry = cluster.shared / f"{name}-results" / "long.json"
    return start


def check(campaign, undisturbed):
    """Both trainings are there once, and the same as without Ray."""
    assert [training(run) for run in campaign.runs] == undisturbed
    seeds = [run["seed"] for run in json.loads(campaign.entry.read_text())["runs"]]
    assert sorted(seeds) == [0, 1]


def test_a_process_and_a_worker_of_ray_are_killed(cluster, campaign, undisturbed, note):
    driver = campaign()
    first = cluster.trains(campaign.run, 2)
    os.kill(first, signal.SIGKILL)
    second = wait_for(lambda: set(processes(f"worker {campaign.runs[0]} ")) - {first}).pop()
    epochs = campaign.runs[0].joinpath("metrics.jsonl").read_text().count("\n")
    cluster.trains(campaign.run, epochs + 1)
    os.kill(parent(second), signal.SIGKILL)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    retries = [line for line in out.splitlines() if line.startswith("retried")]
    assert "signal 9 killed its process" in retries[0]
    assert "was lost" in retries[1]
    assert len(retries) == 2
    assert was_resumed(campaign.runs[0])
    assert not was_resumed(campaign.runs[1])
    check(campaign, undisturbed)
    note(killed="a job's process, then the worker of Ray that held it", jobs=2, retries=retries)


def test_a_machine_is_lost(cluster, campaign, undisturbed, note):
    driver = campaign()
    pid = cluster.trains(campaign.run, 3)
    (name,) = [name for name, machine in cluster.machines.items() if machine.holds(pid)]
    began = time.monotonic()
    cluster.lose(name)
    noticed = round(time.monotonic() - began)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    assert f"retried  {campaign.run}: {name} was lost" in out
    assert was_resumed(campaign.runs[0])
    check(campaign, undisturbed)
    cluster.add(name)
    note(killed="every process of one machine of two", jobs=2, noticed_after_s=noticed)


def test_the_driver_is_killed_and_started_again(cluster, campaign, undisturbed, note):
    driver = campaign()
    pids = [cluster.trains(str(run.relative_to(cluster.shared)), 2) for run in campaign.runs]
    driver.kill()
    driver.communicate()
    again = campaign()  # at once, while those processes save
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert all(map(was_resumed, campaign.runs))
    check(campaign, undisturbed)
    assert all(map(has_ended, pids))
    note(killed="the command, by SIGKILL, with 2 trainings running; started again at once", jobs=2)


def test_the_command_is_told_to_stop(cluster, campaign, undisturbed, note):
    driver = campaign()
    pid = cluster.trains(campaign.run, 2)
    driver.terminate()
    out, _ = driver.communicate(timeout=150)
    assert driver.returncode == 128 + signal.SIGTERM, out
    assert f"stopped  {campaign.run}: " in out
    assert has_ended(pid)
    out, _ = campaign().communicate(timeout=300)
    assert "2 of 2 finished" in out
    check(campaign, undisturbed)
    note(killed="SIGTERM to the command, which is then given again", jobs=2)


def test_a_race_has_a_machine_of_its_own(cluster, note):
    words = ["bench", "race", "digits", "--n", "1", "--set", "epochs=1", *TINY, *NETWORK]
    out, _ = cluster.leanres(*words, "--out", "race.json").communicate(timeout=150)
    (run,) = json.loads((cluster.shared / "race.json").read_text())["runs"]
    assert run["wall_seconds"] > run["train_seconds"] > 0, out
    note(wall_seconds=run["wall_seconds"])


def test_without_an_address_ray_starts_here(cluster, note):
    words = ["compare", "schedules", "--seeds", "0", "--epochs", "1", *TINY, "--json"]
    words += ["--set", "model={family='resnet', widths=[8, 8], depths=[1, 1]}"]
    words += ["--executor", "ray", "--at-once", "2", "--out", "local"]
    command = [sys.executable, "-m", "leanres", *words]
    done = subprocess.run(command, cwd=cluster.shared, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["variant"] for row in json.loads(done.stdout)["rows"]] == ["cosine", "step"]
    note(trainings=2)


def refused(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=150)
    (line,) = [line for line in out.splitlines() if not line.startswith("note: ")]
    assert process.returncode == 2, out
    return line


def test_a_machine_does_not_see_the_folder(cluster, campaign, note):
    cluster.add("c", f"mount -t tmpfs none {cluster.shared} && ")
    line = refused(campaign())
    cluster.lose("c")
    assert line.startswith("leanres: c does not see ")
    assert line.endswith(": name a folder that all machines share")
    note(said=line.replace(str(cluster.shared), "SHARED"))


def test_a_machine_may_not_write_to_the_folder(cluster, campaign, note):
    cluster.add("c", f"mount --bind -o ro {cluster.shared} {cluster.shared} && ")
    line = refused(campaign())
    cluster.lose("c")
    assert line.startswith("leanres: c cannot write to ")
    note(said=line.replace(str(cluster.shared), "SHARED"))


@pytest.mark.parametrize("listens", [False, True])
def test_no_head_answers_within_a_minute(cluster, listens, note, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    if listens:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    began = time.monotonic()
    monkeypatch.setattr(cluster, "port", server.server_port)
    line = refused(cluster.leanres("campaign", "plan.toml", "--data", "digits"))
    if listens:
        server.shutdown()
        server.server_close()
    assert line.endswith("no head of a Ray cluster answers there")
    assert time.monotonic() - began < 60
    note(said=line.replace(cluster.address, "ADDRESS"))


def candidates(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if (p / "run.json").exists())


def test_every_machine_sees_the_shared_folder_late(cluster, note):
    """A view of its own for each machine and for the command. Last: the machines keep it."""
    if not shutil.which("bindfs"):
        pytest.skip("no bindfs: no folder that is seen late")
    view = LATE.format(cluster.shared)
    for name in ("a", "b"):
        cluster.lose(name)
        cluster.add(name, view)
    words = ["search", "--budget", "20k", "--multiple", "4", "--trials", "4", "--epochs", "3"]
    words += ["--recipe", "plain-sgd", "--set", "val=200", *TINY, "--json", "--out", "late"]
    driver = cluster.leanres(*words, view=view)
    out, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, out
    found = json.loads(out.splitlines()[-1])
    assert len(found) == len({c["name"] for c in found}) == 4
    assert candidates(cluster.shared / "late") == sorted(c["name"] for c in found)
    for c in found:
        rows = (cluster.shared / "late" / c["name"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == list(range(1, c["epochs"] + 1))
    note(folder=f"bindfs; names, sizes and absences up to {LATE_S} s old", networks=4)
