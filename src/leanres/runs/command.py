"""The words of a command line, without some of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def without_options(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """The words of a command line without some options and their values.

    `options`: name -> whether the option takes a value, which may follow a space or "=".
    """
    kept: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, equals, _ = word.partition("=")
        if option not in options:
            kept.append(word)
        elif options[option] and not equals:
            next(remaining, None)
    return kept
