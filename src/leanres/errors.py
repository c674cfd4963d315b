"""Errors the user can fix: one class, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_PROBLEM = 200  # characters of what a library says is wrong


class UserError(ValueError):
    """A mistake in the input; the message says what was given, what is valid and what to do.

    The command line prints the message as one line on stderr and exits with code 2.
    """


class NotFoundError(UserError):
    """Data that was in none of the places searched, although every argument was valid."""


class LostProcessError(RuntimeError):
    """Another process of the same training has ended; the command line exits with 1.

    Of those that are left the one that has saved `speaks`, and the others do not; None where there
    was nothing to save.
    """

    speaks: bool | None = None


@contextmanager
def named(place: object) -> Iterator[None]:
    """Puts a file or folder in front of a user's error that does not name it."""
    try:
        yield
    except UserError as error:
        message = str(error)
        known = str(place) in message or printable(place) in message
        raise type(error)(message if known else f"{printable(place)}: {message}") from None


@contextmanager
def undamaged(place: object, raised: tuple[type[Exception], ...]) -> Iterator[None]:
    """Makes of these exceptions, what damaged bytes raise, a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except raised as error:
        of_system = isinstance(error, OSError) and error.errno  # not of the content
        what = "cannot be read" if of_system else "is truncated or corrupt"
        raise UserError(f"{printable(place)} {what}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an exception's message, printable and shortened; its type's name if empty.

    What a library says of damaged bytes may quote them, hundreds at a time.
    """
    text = (isinstance(error, OSError) and error.strerror) or str(error)  # without its number
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return (
        printable(line) if isinstance(error, UserError) else shortened(printable(line), MAX_PROBLEM)
    )


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: what is too long loses its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def printable(text: object) -> str:
    """A file's name, or any other text from outside, as one line that a terminal only shows."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
