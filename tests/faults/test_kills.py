"""A few kills of real processes: each command continues to what it would have left without them."""

from __future__ import annotations

from kills import main


def test_killed_commands_continue_to_the_same_files():
    figures = main(1, names=["train"])
    assert sum(figures["kills"].values()) >= 1
    assert figures["wrong"] == []
