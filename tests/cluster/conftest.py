"""The cluster that the tests share. What they saw goes to $LEANRES_CLUSTER_RESULTS."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from machines import Cluster

from leanres.io import write_bytes
from leanres.runs.layout import commit
from leanres.training.device import CPU, hardware

SEEN: list[dict[str, Any]] = []
OUTCOMES: dict[str, str] = {}  # by test


@pytest.fixture(scope="session", autouse=True)
def _plain_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        yield


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two machines, a and b. A test that loses one adds it again."""
    short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' names are short
    found = Cluster(short, tmp_path_factory.mktemp("shared"))
    try:
        found.start()
        found.add("a")
        found.add("b")
        yield found
    finally:
        found.stop()
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Keep facts of what this test saw; its outcome and seconds are added."""
    facts, began = {"test": request.node.name}, time.monotonic()
    yield facts.update
    facts["seconds"] = round(time.monotonic() - began)
    SEEN.append(facts)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.failed or report.skipped:
        why = f": {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else ""
        OUTCOMES[report.nodeid.rpartition("::")[2]] = f"{report.outcome}{why}"


def pytest_sessionfinish() -> None:
    if not (out := os.environ.get("LEANRES_CLUSTER_RESULTS")):
        return
    tests = {facts["test"]: facts for facts in SEEN}
    found = [{"test": n, "outcome": o} | tests.get(n, {}) for n, o in OUTCOMES.items()]
    about = {"command": "make test-cluster", "ray": version("ray"), "commit": commit()}
    about["hardware"] = hardware(CPU("cpu", "float32", False))
    about["machines"] = "namespaces of this one, one CPU each; lost: all processes killed at once"
    write_bytes(Path(out), (json.dumps(about | {"tests": found}, indent=1) + "\n").encode())
