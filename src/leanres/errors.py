"""Errors the user can fix: one class, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the input; the message says what was given, what is valid and what to do.

    The command line prints the message as one line on stderr and exits with code 2.
    """


class NotFoundError(UserError):
    """Data that was in none of the places searched, although every argument was valid."""


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
        problem = printable(first_line(error))
        raise UserError(f"{printable(place)} is truncated or corrupt: {problem}") from None


def first_line(error: Exception) -> str:
    """The first line of an exception's message; its type's name if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: what is too long loses its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def printable(text: object) -> str:
    """A file's name, or any other text from outside, as one line that a terminal only shows."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
