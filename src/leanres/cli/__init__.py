"""The command line: parse, one library call, print. Torch is imported by the command that runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import typer

from leanres.cli import (
    bench,
    campaign,
    compare,
    data,
    evaluate,
    export,
    find_lr,
    models,
    recipes,
    report,
    runs,
    search,
    train,
)
from leanres.errors import UserError
from leanres.version import __version__

app = typer.Typer(
    name="leanres",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    models.models,
    models.summary,
    data.data,
    recipes.recipes,
    find_lr.find_lr,
    train.train,
    train.resume,
    compare.compare,
    search.search,
    evaluate.evaluate,
    evaluate.predict,
    report.report,
    export.export,
    campaign.campaign,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(runs.app, name="runs")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leanres {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Small residual networks for small images: design, train, examine, ship."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 and 143 stopped."""
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort) as stop:
        _fail("interrupted", 128 + getattr(stop, "number", signal.SIGINT))
    except OSError as error:  # a file or folder that the system does not let us use
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", 2)
    except Exception as error:
        # What the parser refuses knows its own exit code and how to say it.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(message(), getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    one_line = " ".join(message.split())
    print(f"leanres: {one_line}", file=sys.stderr)
    sys.exit(code)
