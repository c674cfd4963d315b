"""The command line: parse, one library call, print. Torch is imported by the command that runs."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.completion import install_callback, show_callback

from leanres.cli import (
    bench,
    campaign,
    compare,
    console,
    data,
    evaluate,
    export,
    find_lr,
    models,
    predict,
    recipes,
    report,
    resume,
    runs,
    search,
    train,
    verify,
)
from leanres.cli.console import is_first_process, number_of_processes, say
from leanres.cli.help import HelpCommand, HelpGroup
from leanres.cli.plugins import with_plugins
from leanres.errors import LostProcessError, UserError, printable
from leanres.plugins import failure
from leanres.runs.stop import terminable
from leanres.version import __version__

CLOSED_PIPE = 141  # the exit code of a program that SIGPIPE ended
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "out of memory", "bad_alloc")  # who says which
WRONG_CHOICE = re.compile(
    r"Invalid value for '(.+?)': (?:Value error, )?'(.*)' is not one of (.*)\."
)
NUMBERS = {int: "a whole number", float: "a number"}
COMPLETION = {"--install-completion": install_callback, "--show-completion": show_callback}
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
MAX_MESSAGE = 2000  # characters: a file may name things of any length


class App(HelpGroup):
    """All commands. Ctrl-C and SIGTERM end one with 128 + the signal's number and one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; completion's options take a shell, which typer would only detect."""
        if args and (callback := COMPLETION.get(args[0])) and args[1:]:
            if args[1:] not in [[shell] for shell in SHELLS]:
                given = " ".join(args[1:])
                raise UserError(f"{args[0]} {given}: give {' or '.join(SHELLS)}, or nothing")
            callback(ctx, None, args[1])  # type: ignore[arg-type]  # it is not looked at
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An interrupt is caught here: typer would make each of them a 130."""
        name = next(iter([*getattr(ctx, "_protected_args", []), *ctx.args]), "")
        if number_of_processes() > 1 and name not in ("", "train", "resume"):
            raise UserError(f"{name} runs in one process: start it without torchrun")
        try:
            with terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            _fail(f"stopped by {by}", 128 + number)


app = typer.Typer(
    name="leanres",
    cls=App,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {  # heading of `leanres --help` -> its commands, in the order in which one needs them
    "Data and networks": (data.data, models.models, models.summary),
    "Training": (recipes.recipes, find_lr.find_lr, train.train, resume.resume),
    "Results": (evaluate.evaluate, report.report, runs.app),
    "Use": (export.export, verify.verify, predict.predict),
    "Many trainings": (compare.compare, search.search, campaign.campaign),
    "Speed": (bench.app,),
}
for heading, commands in COMMANDS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=heading)
        else:
            app.command(cls=HelpCommand, rich_help_panel=heading)(with_plugins(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"leanres {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    """Small residual networks for small images: design, train, examine, ship.

    `leanres COMMAND --help` explains a command and gives an example.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 trainings of a campaign failed, 2 the user's mistake, 130 and 143 stopped
    by Ctrl-C and SIGTERM, 141 the output's reader is gone. An error of our own is raised, so Python
    prints its traceback and exits with 1.
    """
    console.prepare_streams()
    try:
        code = app(args=arguments, prog_name="leanres", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:  # with 1: a closed pipe, which typer and rich notice first
        if told := failure(end):
            _fail(told, 2)
        code = CLOSED_PIPE if end.code == 1 else end.code
    except BrokenPipeError:
        console.drop_output()
        code = CLOSED_PIPE
    except UserError as error:
        _fail(str(error), 2)
    except LostProcessError as error:
        place = "" if error.speaks else f"process {os.environ.get('RANK', '?')}: "
        _fail(f"{place}{error}", 1, error.speaks is not False)
    except OSError as error:  # a file or folder that the system does not let us use
        if error.filename is None and error.errno not in DISK_FULL:
            raise
        console.drop_output()
        _fail(f"cannot read or write {error.filename or 'the output'}: {error.strerror}", 2)
    except Exception as error:
        if any(words in f"{error!r} {error}" for words in OUT_OF_MEMORY):
            _fail("out of memory: give a smaller network, smaller batches or fewer images", 2)
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.home's
            _fail("no home folder is known here: set HOME to one", 2)
        if told := failure(error):  # a user's own function raised it
            _fail(told, 2)
        if not hasattr(error, "format_message"):  # the parser's own errors have it
            raise
        _fail(_in_our_words(error), getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _in_our_words(error: Any) -> str:
    """The parser's message; that on a wrong choice as "--id foo: give path or stem".

    That on a number out of its range, or on text instead of one, is built alike.
    """
    message: str = error.format_message()
    wanted = _number(getattr(error, "param", None))
    if wanted and hasattr(error.__cause__, "errors"):  # pydantic's, which knows what was given
        given = error.__cause__.errors()[0]["input"]
        return f"{error.param.opts[-1]} {given}: give {wanted}"
    match = WRONG_CHOICE.fullmatch(message)
    if match is None:
        return message
    option, given, choices = match.groups()
    return f"{option} {given}: give {choices.replace(chr(39), '').replace(', ', ' or ')}"


def _number(parameter: Any) -> str:
    """What an option for a number takes: "a whole number from 0 to 1024"; "" for other options."""
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if kind not in (int, float):
        return ""
    low, high = parameter.min, parameter.max
    bounds = f" of {low} or more" if high is None else f" from {low} to {high}"
    return NUMBERS[kind] + (bounds if low is not None else "")


def _fail(message: str, code: int, speaks: bool | None = None) -> NoReturn:
    """Exit with the code; of several processes the first one says why, or the one that `speaks`."""
    one_line = printable(" ".join(message.split())[:MAX_MESSAGE])
    if is_first_process() if speaks is None else speaks:
        print(f"leanres: {one_line}", file=sys.stderr)
    sys.exit(code)
