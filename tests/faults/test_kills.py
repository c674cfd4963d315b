"""A few kills of a training: it continues to what it would have left without them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import sklearn.datasets  # noqa: F401  # here, not in each fork
import torch._dynamo  # noqa: F401  # the same: the first optimizer imports it
from forks import ForkedPopen
from kills import COMMANDS, main, run


def test_a_killed_training_continues_to_the_same_files():
    """In forks: `make campaign` kills all commands as real processes, which start for seconds."""
    train = COMMANDS["train"]
    train = replace(train, words=[*train.words, "--no-report"])
    figures = main(1, commands={"train": train}, start=partial(run, start=ForkedPopen))
    assert sum(figures["kills"].values()) >= 1
    assert figures["wrong"] == []
