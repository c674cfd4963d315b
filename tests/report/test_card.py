"""What a model card says to others."""

from __future__ import annotations

import pytest

from leanres.report.card import _what


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("leanres train speed --seed 2", "leanres train speed --seed 2"),
        (
            "leanres train speed --device auto --seed 20 --out /home/me/runs/a --no-report --json",
            "leanres train speed --seed 20",
        ),
        (
            "leanres train --path=/home/me/data x.toml --set 'lr=0.1' --track mlflow --threads 2",
            "leanres train x.toml --set lr=0.1",
        ),
    ],
)
def test_the_command_that_trains_again_names_nothing_of_the_machine(command, shown):
    assert _what(command) == shown
