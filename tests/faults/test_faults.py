"""The fault harnesses in small: `make campaign` runs them at length (results/bench/faults.json)."""

from __future__ import annotations

import filesystem
import mutations
import writers


def test_a_failing_file_system_call_loses_nothing():
    found = filesystem.main(sample=4)
    assert found["calls"] > 100
    assert found["wrong"] == []


def test_no_changed_file_is_read_in_silence():
    found = mutations.main(550)
    assert found["wrong"] == []
    assert all(sum(counts.values()) == 50 for counts in found["outcomes"].values())
    assert all(counts.get("same", 0) < 25 for counts in found["outcomes"].values())


def test_a_change_without_effect_on_the_sums_would_be_found(monkeypatch):
    """The harness itself: a reader that checks nothing is caught."""
    monkeypatch.setattr(mutations, "edited", lambda folder: [])
    found = mutations.main(330)
    silent = [line for line in found["wrong"] if "silent" in line]
    assert silent


def test_two_writers_of_one_file_leave_it_whole():
    found = writers.main(1.5, rows=20)
    assert found["reads"] > 20
    assert (found["torn_reads"], found["failed_writes"], found["left_behind"]) == (0, 0, [])
    assert found["rows_kept"] == found["rows_added"] == 40
