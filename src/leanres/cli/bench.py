"""`leanres bench`: the commands that measure speed on this machine."""

from __future__ import annotations

import typer

from leanres.cli.help import HelpCommand, HelpGroup
from leanres.cli.peers import peers
from leanres.cli.race import race
from leanres.cli.scaling import scaling
from leanres.cli.step import step

app = typer.Typer(
    name="bench",
    cls=HelpGroup,
    help="Measure speed: the parts of a step, seconds to an accuracy, other programs.",
)
for command in (step, scaling, race, peers):
    app.command(cls=HelpCommand)(command)
