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
    found = mutations.main(330)
    assert found["wrong"] == []
    assert all(sum(counts.values()) == 30 for counts in found["outcomes"].values())
    assert all(counts.get("same", 0) < 15 for counts in found["outcomes"].values())


def test_no_changed_batch_or_shard_of_cifar10_is_read_in_silence():
    found = mutations.main(120, of="small cifar10")
    assert found["wrong"] == []
    assert len(found["outcomes"]) == 4
    assert all(counts.get("same", 0) < 20 for counts in found["outcomes"].values())


def test_no_page_card_or_figure_is_made_of_a_changed_file_in_silence():
    found = mutations.main(11, of="pages")
    assert found["wrong"] == []
    assert sum(map(len, found["outcomes"].values())) == 11
    assert not any("same" in counts for counts in found["outcomes"].values())


def test_a_change_without_effect_on_the_sums_would_be_found(monkeypatch):
    """The harness itself: a reader that checks nothing is caught."""
    monkeypatch.setattr(mutations, "edited", lambda folder: [])
    found = mutations.main(1320)  # most changes break run.json; one in twenty is read in silence
    silent = [line for line in found["wrong"] if "silent" in line]
    assert silent


def test_two_writers_of_one_file_leave_it_whole():
    found = writers.main(1.5, rows=20)
    assert found["reads"] > 20
    assert found["rows_added"] == 40
    assert found["wrong"] == []
