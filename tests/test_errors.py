"""Names as one line, and as a short one."""

from __future__ import annotations

import pytest

from leanres.errors import printable, shortened


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("cat/0.png", 9, "cat/0.png"),
        ("cat/10.png", 9, "cat/….png"),
        ("0123456789", 4, "01…9"),
        ("0123456789", 1, "…"),
        ("", 3, ""),
    ],
)
def test_a_long_text_loses_its_middle(text, most, short):
    assert shortened(text, most) == short
    assert len(short) <= most


def test_a_text_cannot_control_a_terminal_or_turn_the_line_around():
    assert printable("a\x1b[31m\n\u202egnp.exe") == "a?[31m??gnp.exe"
