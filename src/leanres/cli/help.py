"""Help pages: commands and options under headings, plain text in 80 columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from leanres.errors import UserError
from leanres.registry import unknown

NAME_WIDTH = 20  # the explanations of one page start in one column

# What a type of typer's is called on a help page: "--steps <int range>" -> "--steps N".
TYPE = re.compile(r"<(?:list\[)?(\w+).*>")
TYPES = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH"}

Sections = dict[str, list[tuple[str, str]]]  # heading -> (name, explanation)


class HelpCommand(TyperCommand):
    """A command whose options stand under headings, as `rich_help_panel` names them.

    An option that names none stands under the heading of the one before it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. UserError for an empty path."""
        _refuse_empty_paths(self, ctx, args)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, without typer's braces around an argument."""
        words = " ".join(super().collect_usage_pieces(ctx))
        return words.replace("{", "").replace("}", "").upper().split()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        _write(_option_sections(self, ctx), formatter, NAME_WIDTH)


class HelpGroup(TyperGroup):
    """A group of commands under headings. Called without a command it prints its help page."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--help` where nothing was given, unless the group itself does something then."""
        bare = not args and not self.invoke_without_command
        _refuse_empty_paths(self, ctx, args)
        return super().parse_args(ctx, ["--help"] if bare else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named. UserError for an unknown one, which names the nearest."""
        name = args[0]
        is_known = self.get_command(ctx, name) or name.startswith("-")
        if not is_known and not ctx.resilient_parsing:  # a shell's completion goes on
            raise UserError(unknown("command", name, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands with their first sentences, then the options."""
        names = self.list_commands(ctx)
        sections: Sections = {}
        for name in names:
            command: Any = self.get_command(ctx, name)
            sentence = command.help.partition("\n\n")[0].replace("\n", " ")
            sections.setdefault(command.rich_help_panel or "Commands", []).append((name, sentence))
        _write(sections, formatter, max(map(len, names)))
        _write(_option_sections(self, ctx), formatter, NAME_WIDTH)


def _refuse_empty_paths(command: Any, ctx: Any, args: list[str]) -> None:
    """UserError for an empty word where a path is wanted: pathlib takes it for this folder."""
    if ctx.resilient_parsing:  # a shell's completion: words may be empty
        return
    given = command.make_parser(ctx).parse_args(args=[*args])[0]
    for parameter in command.get_params(ctx):
        words = given.get(parameter.name)
        is_path = parameter.type_descriptor.annotation in (Path, list[Path])
        if is_path and "" in (words if isinstance(words, list | tuple) else [words]):
            option = parameter.param_type_name == "option"
            name = parameter.opts[-1] if option else parameter.metavar or parameter.name.upper()
            raise UserError(f"{name} is empty: give a path (a dot: this folder)")


def _option_sections(command: Any, ctx: Any) -> Sections:
    sections: Sections = {}
    heading = "Options"
    for parameter in command.get_params(ctx):
        name, explanation = parameter.get_help_record(ctx)
        if parameter.param_type_name == "argument":
            name, heading = parameter.metavar or parameter.name.upper(), "Arguments"
        elif heading == "Arguments" or parameter.rich_help_panel:
            heading = parameter.rich_help_panel or "Options"
        name = TYPE.sub(_type, name)
        sections.setdefault(heading, []).append((name, explanation))
    return sections


def _type(match: re.Match[str]) -> str:
    """A type as a help page shows it; the words of a choice, as path|stem, stay."""
    is_choice = "|" in match[0]
    return match[0][1:-1] if is_choice else TYPES.get(match[1].lower(), match[0][1:-1])


def _write(sections: Sections, formatter: Any, width: int) -> None:
    for heading, rows in sections.items():
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), explanation) for name, explanation in rows])
