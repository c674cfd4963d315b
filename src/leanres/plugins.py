"""Plugins: a user's own file or module with networks, augmentations, losses and the like.

A plugin is imported only where the user names it: `--plugin mine.py`, or `load_plugin("mine.py")`.
What it defines has the name "mine:Net". Runs and weights keep such names, runs the file's sha256
too, and never import anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from leanres.errors import UserError, first_line

GROUP = "leanres.plugins"  # of entry points
_FITS = "give a .py file, or an installed module"
_MODULE = re.compile(r"[\w.-][\w. -]*")  # a module's name, or that of a file without its .py
_PREFIX = "leanres_plugin_"  # in sys.modules, so that mine.py hides no other module


@dataclass(frozen=True)
class Plugin:
    """A module that was named as a plugin: its short name, its file, and the file's sha256."""

    name: str
    path: str
    sha256: str


class NotLoadedError(UserError):
    """A name like "mine:Net" whose plugin was not named: nothing imports it by itself."""


LOADED: dict[str, Plugin] = {}
_MODULES: dict[str, ModuleType] = {}


def load_plugin(given: str | Path) -> Plugin:
    """Import a plugin: a .py file, an installed module, or an entry point's name (leanres.plugins).

    Its own `leanres.MODELS[...] = ...` and the like run; what it defines is found as "name:thing".
    A file's folder joins sys.path, so that it can import its neighbours. UserError, with file and
    line, where it cannot be imported.
    """
    text = str(given)
    if not text.endswith(".py") and not all(word.isidentifier() for word in text.split(".")):
        raise UserError(f"no plugin {text!r}: {_FITS}")
    try:
        if text.endswith(".py"):
            module = _import_file(Path(given))
        else:
            points = importlib.metadata.entry_points(group=GROUP, name=text)
            module = importlib.import_module(next((p.value for p in points), text))
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if not f"{text}.".startswith(f"{error.name}."):  # it is a module that the plugin wants
            raise _failed(text, error) from error
        raise UserError(f"no plugin {text!r}: {_FITS}") from None
    except (Exception, SystemExit) as error:
        raise _failed(text, error) from error
    return _remember(Path(text).stem if text.endswith(".py") else text, module)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"plugin {path} does not exist: {_FITS}")
    known, name = LOADED.get(path.stem), _PREFIX + path.stem
    if known and known.path != str(path.resolve()):
        raise UserError(f"two plugins have one name, {known.path} and {path}: rename one of them")
    if known and known.sha256 == _sha256(path):
        return _MODULES[path.stem]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses need it
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failed(plugin: str, error: BaseException) -> UserError:
    """What went wrong while a plugin was imported, and on which of its lines."""
    lines = [line for file, line in _places(error) if Path(file).name == Path(plugin).name]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    return UserError(_told(plugin, lines, error))


def failure(error: BaseException) -> str:
    """What went wrong in a plugin's function, and on which of its lines; "" if in none of them."""
    for file, line in reversed(_places(error)):
        for plugin in LOADED.values():
            if plugin.path == str(Path(file).resolve()):
                return _told(plugin.path, [line], error)
    return ""


def _places(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each call on the way to an exception, the last one where it was raised."""
    return [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]


def _told(plugin: str, lines: list[int], error: BaseException) -> str:
    line = f", line {lines[-1]}" if lines else ""
    reason = first_line(error) if isinstance(error, Exception) else "it ends the program"
    return f"plugin {plugin}{line}: {type(error).__name__}: {reason}"


def _remember(name: str, module: ModuleType) -> Plugin:
    source = getattr(module, "__file__", None)
    path = Path(source).resolve() if source else None
    found = Plugin(name, str(path or name), _sha256(path) if path and path.is_file() else "")
    LOADED[name], _MODULES[name] = found, module
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_reference(name: str) -> bool:
    """Whether a name is of a plugin's thing: "mine:Net", also "my-nets.v2:Net"."""
    module, _, thing = name.rpartition(":")
    return thing.isidentifier() and bool(_MODULE.fullmatch(module))


def find(kind: str, name: str) -> Any:
    """The thing that "mine:Net" means. UserError where its plugin is not loaded, or lacks it."""
    module, _, thing = name.rpartition(":")
    if module not in _MODULES:
        raise NotLoadedError(
            f"{kind} {name!r} is in the plugin {module}, which is not loaded: give --plugin, or"
            " call leanres.load_plugin"
        )
    found = getattr(_MODULES[module], thing, None)
    if not callable(found):
        there = [key for key, value in vars(_MODULES[module]).items() if _is_own(value, module)]
        raise UserError(
            f"plugin {module} has no {kind} {thing!r}; it has {', '.join(there) or 'nothing'}"
        )
    return found


def _is_own(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", "").endswith(module)


def reference(thing: Any) -> str:
    """The name of a function or class that came from Python: "mine:Net". Its file is remembered.

    UserError for one that its module does not have under its name, such as a lambda: two of them
    could not be told apart, and a run that is resumed would not find it.
    """
    own = getattr(thing, "__qualname__", "")
    if not own or getattr(sys.modules.get(thing.__module__), own, None) is not thing:
        raise UserError(
            f"{own or f'a {type(thing).__name__}'} cannot be found by its name: give the function"
            " or class at the top of a module, or enter this one, as leanres.MODELS['mine'] = ...,"
            " and give 'mine'"
        )
    return f"{remember_module_of(thing)}:{own}"


def remember_module_of(thing: Any) -> str:
    """The short name of the module that a function or class comes from, a plugin from now on."""
    module = getattr(thing, "__module__", None) or "__main__"
    name = module.removeprefix(_PREFIX)
    if name not in LOADED and module in sys.modules:
        _remember(name, sys.modules[module])
    return name


def used() -> list[dict[str, str]]:
    """Name, path and sha256 of the plugins of this process, for run.json."""
    return [asdict(plugin) for plugin in LOADED.values()]


def to_load() -> list[str]:
    """What `load_plugin` takes in another process to have this one's plugins."""
    is_file = {name: _MODULES[name].__name__.startswith(_PREFIX) for name in LOADED}
    return [plugin.path if is_file[name] else name for name, plugin in LOADED.items()]


def changes(recorded: list[Mapping[str, Any]]) -> list[str]:
    """Notes on the plugins of a run that are not the files that it was started with."""
    notes = []
    for then in recorded:
        now = LOADED.get(str(then.get("name")))
        if now and now.sha256 != then.get("sha256"):
            notes.append(f"the plugin {now.name} has changed since the run began ({now.path})")
    return notes
