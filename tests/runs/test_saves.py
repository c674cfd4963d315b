"""When a run is saved."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from leanres.runs import fit
from leanres.runs import run as runs
from leanres.runs.stop import Stop
from leanres.training.loop import TrainState


@pytest.mark.parametrize(("writing_s", "saved_epochs"), [(0.0, [1, 2, 3, 4]), (3.0, [1, 4])])
def test_slow_saves_are_spaced_and_the_last_epoch_is_saved(
    tmp_path, digits, device, small, monkeypatch, writing_s, saved_epochs
):
    """A step takes a second: a save of 3 s is followed by none for 20 times as long."""
    now, written = [0.0], []

    def save(run: runs.Run) -> None:
        now[0] += writing_s
        written.append(run.state.step // run.setup.counts.steps_per_epoch)

    def tick(state: TrainState) -> None:
        now[0] += 1

    run = runs.create(tmp_path / "run", replace(small, epochs=4), digits, device)
    assert 1 < run.setup.counts.steps_per_epoch < 20
    monkeypatch.setattr(fit, "save", save)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with Stop() as stop:
        list(fit.epochs(run, stop, tick))
    assert written == saved_epochs
