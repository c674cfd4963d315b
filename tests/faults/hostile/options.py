"""Settings of a recipe and words of the command line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hostile.cases import ODD, Case, run_command
from leanres.training.recipe import Recipe, from_dict, parse_setting

SETTINGS = (
    *("", "nan", "inf", "-1", "1e999", "9" * 5000, "[", "[" * 5000, "{a=1}", "[[]]", "\x1b[2J"),
    *("[nan]", "0x", "'a'", '"', "[1, 2", "true", "a\nb", "a.b", "1979-05-27", "é", "-0.0", "[{}]"),
)
WORDS = (*SETTINGS, "\ud800", "-", "--", "=cmd|x", "%s%n", "../" * 2000, "a" * 100_000, "\0")
COMMANDS = (
    *(["summary", "{}"], ["models", "{}"], ["recipes", "{}"], ["runs", "--where", "{}"]),
    *(["runs", "--sort", "{}"], ["runs", "diff", "{}", "{}"], ["report", "{}"], ["{}"]),
    *(["predict", "{}", "{}"], ["summary", "resnet20", "--size", "{}"], ["resume", "{}"]),
    *(["evaluate", "{}", "--data", "{}"], ["data", "--data", "{}"], ["export", "{}"]),
)


def options(count: int, rng: random.Random) -> Iterator[Case]:
    """Settings of a recipe, as values and as words of the command line; options of commands.

    count: of settings of each kind, drawn.
    """
    names = [field.name for field in fields(Recipe)]
    typed = [(name, word) for name in names for word in SETTINGS]
    for name, word in rng.sample(typed, min(count, len(typed))):

        def setting(name: str = name, word: str = word) -> Any:
            return from_dict(dict([parse_setting(f"{name}={word}")]))

        yield Case("setting", f"{name}={word[:20]}", setting, refused=False)
    values = [(name, value) for name in names for value in ODD]
    for name, value in rng.sample(values, min(count, len(values))):

        def given(name: str = name, value: Any = value) -> Any:
            return from_dict({name: value})

        yield Case("setting", f"{name} = {str(value)[:30]}", given, refused=False)
    for command in COMMANDS:
        for word in WORDS:

            def run(command: list[str] = command, word: str = word) -> None:
                run_command(*(part.format(word) for part in command))

            yield Case("command", f"{command} with {word[:20]!r}", run, refused=False)
