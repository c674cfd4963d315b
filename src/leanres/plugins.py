"""Plugins: a user's own file or module with networks, augmentations, losses and the like.

A plugin is imported only where the user names it: `--plugin mine.py`, or `load_plugin("mine.py")`.
What it defines has the name "mine:Net". Runs and weights keep such names and the file's sha256, and
never import anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from leanres.errors import UserError, first_line

GROUP = "leanres.plugins"  # of entry points
_FITS = "give a .py file, or an installed module"
_PREFIX = "leanres_plugin_"  # in sys.modules, so that mine.py hides no other module


@dataclass(frozen=True)
class Plugin:
    """A module that was named as a plugin: its short name, its file, and the file's sha256."""

    name: str
    path: str
    sha256: str


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
        if error.name != text.partition(".")[0]:  # it is a module that the plugin wants
            raise _failed(text, error) from error
        raise UserError(f"no plugin {text!r}: {_FITS}") from None
    except (Exception, SystemExit) as error:
        raise _failed(text, error) from error
    return _remember(Path(text).stem if text.endswith(".py") else text, module)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"plugin {path} does not exist: {_FITS}")
    known, name = LOADED.get(path.stem), _PREFIX + path.stem
    if known and known.path == str(path.resolve()) and known.sha256 == _sha256(path):
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
    """What went wrong in a plugin, and on which of its lines."""
    frames, line = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else [], ""
    own = [frame.lineno for frame in frames if Path(frame.filename).name == Path(plugin).name]
    if isinstance(error, SyntaxError) and error.lineno:
        own = [error.lineno]
    if own:
        line = f", line {own[-1]}"
    reason = first_line(error) if isinstance(error, Exception) else "it ends the program"
    return UserError(f"plugin {plugin}{line}: {type(error).__name__}: {reason}")


def _remember(name: str, module: ModuleType) -> Plugin:
    source = getattr(module, "__file__", None)
    path = Path(source).resolve() if source else None
    found = Plugin(name, str(path or name), _sha256(path) if path and path.is_file() else "")
    LOADED[name], _MODULES[name] = found, module
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_reference(name: str) -> bool:
    """Whether a name is of a plugin's thing: "mine:Net"."""
    module, colon, thing = name.partition(":")
    return bool(colon and thing) and all(part.isidentifier() for part in module.split("."))


def find(kind: str, name: str) -> Any:
    """The thing that "mine:Net" means. UserError where its plugin is not loaded, or lacks it."""
    module, _, thing = name.partition(":")
    if module not in _MODULES:
        raise UserError(
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
    """The name of a function or class that came from Python: "mine:Net". Its file is remembered."""
    module = getattr(thing, "__module__", None) or "__main__"
    name = module.removeprefix(_PREFIX)
    if name not in LOADED and module in sys.modules:
        _remember(name, sys.modules[module])
    return f"{name}:{getattr(thing, '__qualname__', type(thing).__name__)}"


def used() -> list[dict[str, str]]:
    """Name, path and sha256 of the plugins of this process, for run.json."""
    return [asdict(plugin) for plugin in LOADED.values()]


def changes(recorded: list[Mapping[str, Any]]) -> list[str]:
    """Notes on the plugins of a run that are not the files that it was started with."""
    notes = []
    for then in recorded:
        now = LOADED.get(str(then.get("name")))
        if now and now.sha256 != then.get("sha256"):
            notes.append(f"the plugin {now.name} has changed since the run began ({now.path})")
    return notes
