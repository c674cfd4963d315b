"""`leanres bench`: the commands that measure speed on this machine."""

from __future__ import annotations

import typer

from leanres.cli.help import HelpCommand, HelpGroup
from leanres.cli.plugins import with_plugins
from leanres.cli.race import race
from leanres.cli.scaling import scaling
from leanres.cli.step import step

app = typer.Typer(
    name="bench",
    cls=HelpGroup,
    help="Measure speed: the parts of a step, how they scale, seconds to an accuracy.",
)
for command in (step, scaling, race):
    app.command(cls=HelpCommand)(with_plugins(command))
