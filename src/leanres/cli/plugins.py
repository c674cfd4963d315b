"""`--plugin`, an option of every command: what it names is imported before anything else."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import typer


def _load(given: list[str]) -> list[str]:
    from leanres.plugins import load_plugin

    with redirect_stdout(sys.stderr):  # what a plugin prints is no part of the result
        for plugin in given:
            load_plugin(plugin)
    return given


PLUGINS = typer.Option(
    [],
    "--plugin",
    metavar="FILE|MODULE",
    is_eager=True,
    callback=_load,
    help="Import your own networks, augmentations, losses and so on from a .py file or a module"
    " (repeatable).",
)


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the option `--plugin`."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        del given["plugins"]  # its callback has imported them
        command(**given)

    shape = inspect.signature(command, eval_str=True)
    option = inspect.Parameter(
        "plugins", inspect.Parameter.KEYWORD_ONLY, default=PLUGINS, annotation=list[str]
    )
    parameters = [*shape.parameters.values(), option]
    run.__signature__ = shape.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
