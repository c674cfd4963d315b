"""Shell completion of values. Tables are read from their source: importing them imports torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
Completer = Callable[[str], list[str]]  # the start of a word -> the words that it may become


def words(*known: str) -> Completer:
    """Complete one of these words."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def keys_of(file: str, table: str, *more: str, but: str = "") -> Completer:
    """Complete a key of a table of the package (`but` this one), or one of the words in `more`."""

    def complete(incomplete: str) -> list[str]:
        known = (key for key in _keys(file, table) if key != but)
        return words(*known, *more)(incomplete)

    return complete


def each_key_of(file: str, table: str) -> Completer:
    """Complete the last of several keys of a table, which commas divide."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in words(*_keys(file, table))(last)]

    return complete


def field_of(file: str, name: str) -> Completer:
    """Complete `KEY=`, a field of a dataclass of the package."""

    def complete(incomplete: str) -> list[str]:
        (found,) = (
            node for node in _parsed(file) if isinstance(node, ast.ClassDef) and node.name == name
        )
        targets = (node.target for node in found.body if isinstance(node, ast.AnnAssign))
        return words(*(f"{t.id}=" for t in targets if isinstance(t, ast.Name)))(incomplete)

    return complete


def _keys(file: str, table: str) -> Iterator[str]:
    """The keys of `TABLE: Table[...] = Table(kind, {...})`."""
    for node in _parsed(file):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
            assert isinstance(node.value, ast.Call)
            _, entries, *_ = node.value.args
            assert isinstance(entries, ast.Dict)
            yield from (ast.literal_eval(key) for key in entries.keys if key is not None)


def _parsed(file: str) -> list[ast.stmt]:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body


RECIPE = keys_of("training/recipes.py", "NAMED_RECIPES")
MODEL = keys_of("models/zoo.py", "MODELS")
SETTING = field_of("training/recipe.py", "Recipe")
DATA = keys_of("data/sources/__init__.py", "SOURCES", but="arrays")
TTA = keys_of("metrics/inference.py", "TTA", "auto")
DEVICE = keys_of("training/device.py", "DEVICES", "auto")
TRACKER = each_key_of("runs/tracking.py", "TRACKERS")
COMPARISON = keys_of("trials/compare.py", "COMPARISONS")
PRECISION = words("float32", "bfloat16")
