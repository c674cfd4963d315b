"""Names as one line, and as a short one; errors that name their file."""

from __future__ import annotations

import pytest

from leanres.errors import NotFoundError, UserError, named, printable, shortened, undamaged


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


def test_an_error_names_its_file_once_and_keeps_its_type():
    with pytest.raises(NotFoundError, match=r"^a\?b: no labels$"), named("a\nb"):
        raise NotFoundError("no labels")
    with pytest.raises(UserError, match=r"^x\.npz has no labels$"), named("x.npz"):
        raise UserError("x.npz has no labels")


def test_what_damaged_bytes_raise_is_one_line_and_other_errors_pass():
    with (
        pytest.raises(UserError, match=r"^x is truncated or corrupt: two\?$"),
        undamaged("x", (KeyError, OSError)),
    ):
        raise OSError("two\x1b\nlines")
    with pytest.raises(UserError) as caught, undamaged("x", (ValueError,)):
        raise ValueError("a" * 5000)
    assert str(caught.value) == f"x is truncated or corrupt: {'a' * 100}…{'a' * 99}"
    with pytest.raises(UserError) as caught, undamaged("x", (OSError,)):
        raise IsADirectoryError(21, "Is a directory", "x")
    assert str(caught.value) == "x cannot be read: Is a directory"
    with pytest.raises(UserError, match=r"^give labels$"), undamaged("x", (ValueError,)):
        raise UserError("give labels")
    with pytest.raises(ZeroDivisionError), undamaged("x", (ValueError,)):
        raise ZeroDivisionError
