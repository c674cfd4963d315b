"""What a user can mend: one class, one line."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave; the message says what came, what fits and what to do.

    The command line prints the message as one line on stderr and exits with 2.
    """


class NotFoundError(UserError):
    """Data that was looked for everywhere it could be and is nowhere; nothing given was wrong."""


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type's name where there is none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
