"""`leanres verify`."""

from __future__ import annotations

from pathlib import Path

import typer

from leanres.cli import options
from leanres.cli.console import say
from leanres.cli.export import as_json_text, print_check
from leanres.errors import UserError


def verify(
    file: Path = typer.Argument(metavar="FILE", help="A file that `leanres export` wrote."),
    data: str | None = options.source_option(
        None, help=f"{options.DATA_HELP} Default: what the file was checked on."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Check an exported file again, from the file alone: its answers, size, latency and memory.

    Example: leanres verify first.onnx
    """
    from leanres.ship.export import known_facts
    from leanres.ship.export import verify as check_again

    known = known_facts(file)
    if not (name := data or known.checked.get("data")):
        raise UserError(f"{file} does not name its data: give --data")
    preprocess = known.preprocess
    asked = preprocess.size, False, preprocess.channels, preprocess.whites
    dataset = options.load_dataset(name, *asked)
    split = dataset.test or dataset.val or dataset.train
    done = check_again(file, split)
    if as_json:
        say(as_json_text(done))
        return
    print_check(done)
    told = known.checked
    if done.agreement is None:
        say(f"other images than the {told['n']:,} of its export: only its accuracy is measured")
    else:
        say(f"{file} answers the images of its export as the network did")
