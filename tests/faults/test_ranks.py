"""A kill of one of several processes: the others save, and the result is the same."""

from __future__ import annotations

import ranks
import sklearn.datasets  # noqa: F401  # here, not in each fork
import torch._dynamo  # noqa: F401  # the same: the first optimizer imports it


def test_what_is_left_when_a_process_is_killed_continues_to_the_same_bits():
    figures = ranks.main(1)
    assert figures["wrong"] == []
    assert sum(figures["ends"].values()) == 1
