"""The JSON Schema of a recipe's TOML file, for editors: made of the settings' types and ranges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from leanres.data.arrays import CHANNELS
from leanres.models.zoo import FAMILIES, MODELS
from leanres.registry import Convert, Range, Table, notes_of, setting_types
from leanres.training.recipe import (
    Channels,
    ClassWeights,
    Freeze,
    Held,
    Network,
    Recipe,
    Resizing,
    describe_settings,
)
from leanres.training.recipes import RECIPES

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
Schema = dict[str, Any]
OF_PLUGIN: Schema = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:.+$"}  # "mine:Net"


def recipe_schema() -> Schema:
    """What a recipe's file may hold. JSON-able, JSON Schema draft 2020-12.

    It refuses only what `load_recipe` refuses. That also checks what settings mean together, and
    which files there are.
    """
    notes, defaults = describe_settings(), Recipe().to_dict()
    settings = {
        name: schema_of(hint) | {"description": notes[name], "default": defaults[name]}
        for name, hint in setting_types(Recipe).items()
    }
    about = {"description": "the recipe whose settings these change", "default": "speed"}
    base = {"enum": [*RECIPES]} | about
    return {"$schema": DRAFT, "title": "leanres recipe", **_object({"base": base, **settings})}


def schema_of(hint: Any) -> Schema:
    """The values that `registry.checked` takes for a type, and perhaps some more."""
    notes, origin, options = notes_of(hint), get_origin(hint), get_args(hint)
    if converts := [note for note in notes if isinstance(note, Convert)]:
        return _converted(converts[0], options[0])
    if origin is Annotated:
        tables = [note for note in notes if isinstance(note, Table)]
        named = {"anyOf": [{"enum": [*tables[0]]}, OF_PLUGIN]} if tables else {}
        schema = named if tables and options[0] is str else schema_of(options[0])
        bounds = [note for note in notes if isinstance(note, Range)]
        return _within(schema, bounds[0]) if bounds else schema
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(option) for option in options]}
    if origin is Literal:
        return {"enum": [*options]}
    if origin is tuple:
        each, length = {"items": schema_of(options[0])}, len(options)
        fixed = {} if options[-1] is Ellipsis else {"minItems": length, "maxItems": length}
        return {"type": "array", **each, **fixed}
    return {"type": TYPES[hint]} if hint in TYPES else {}


def _converted(note: Convert, base: Any) -> Schema:
    """The schema of a setting that a function reads; anything, where nothing is known of it."""
    if isinstance(note.read, partial) and isinstance(table := note.read.args[0], Table):
        one = _spec(table)
        many = get_args(base)[-1] is Ellipsis
        return {"type": "array", "items": one} if many else one
    return OWN[note]() if note in OWN else {}


def _spec(table: Table[Callable[..., Any]]) -> Schema:
    """An entry of a table: its name, or [name, {setting = value}]."""
    pairs = [
        _pair({"const": name}, _object(_settings(function))) for name, function in table.items()
    ]
    of_plugin = _pair(OF_PLUGIN, {"type": "object"})
    return {"anyOf": [{"enum": [*table]}, OF_PLUGIN, *pairs, of_plugin]}


def _settings(function: Callable[..., Any]) -> Schema:
    """The settings of a registered function: its parameters with a default, as in the registry."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    hints = {name: type(value) for name, value in defaults.items()} | setting_types(function)
    return {name: schema_of(hints[name]) | {"default": defaults[name]} for name in defaults}


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _pair(first: Schema, second: Schema) -> Schema:
    # For editors of an older draft, as taplo, that know no "prefixItems": "items", which for others
    # are those behind the two.
    each = {"prefixItems": [first, second], "items": {"anyOf": [first, second]}}
    return {"type": "array", **each, "minItems": 2, "maxItems": 2}


def _within(schema: Schema, bounds: Range) -> Schema:
    """The schema with every number in it between the bounds."""
    if schema.get("type") in ("integer", "number"):
        return schema | {"minimum": bounds.low, "maximum": bounds.high}
    if "items" in schema:
        return schema | {"items": _within(schema["items"], bounds)}
    if "anyOf" in schema:
        return {"anyOf": [_within(option, bounds) for option in schema["anyOf"]]}
    return schema


def _network() -> Schema:
    families = [
        _object(
            {"family": {"const": family}}
            | {name: schema_of(hint) for name, hint in setting_types(config).items()}
        )
        | {"required": ["family"]}
        for family, config in FAMILIES.items()
    ]
    return {"anyOf": [{"enum": [*MODELS, ""]}, OF_PLUGIN, *families]}


def _resizing() -> Schema:
    share = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    scale = {"type": "number", "minimum": 0.25, "maximum": 1}
    return {"type": "array", "items": _pair(share, scale)}


def _channels() -> Schema:
    number = {"type": "number", "minimum": 0, "maximum": 1}
    lengths = [{"minItems": count, "maxItems": count} for count in (0, *CHANNELS)]
    return {"type": "array", "items": number, "anyOf": lengths}


def _class_weights() -> Schema:
    weight = {"type": "number", "minimum": 1e-6, "maximum": 1e6}
    each = {"type": "object", "additionalProperties": weight, "minProperties": 1}
    return {"anyOf": [{"enum": ["", "balanced"]}, each]}


def _held() -> Schema:
    share = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    return {"anyOf": [share, {"type": "integer", "minimum": 1, "maximum": 10**9}]}


def _freeze() -> Schema:
    return {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0.001, "maximum": 0.999}]}


OWN: dict[Convert, Callable[[], Schema]] = {
    notes_of(Network)[0]: _network,
    notes_of(Resizing)[0]: _resizing,
    notes_of(Channels)[0]: _channels,
    notes_of(ClassWeights)[0]: _class_weights,
    notes_of(Held)[0]: _held,
    notes_of(Freeze)[0]: _freeze,
}
