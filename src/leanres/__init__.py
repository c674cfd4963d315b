"""leanres: small residual networks for small images: design, train, examine, ship.

Names are imported when first used, so that `import leanres` costs nothing.
"""

from importlib import import_module
from typing import Any

from leanres.version import __version__

_HOMES = {
    "Dataset": "leanres.data.split",
    "Split": "leanres.data.split",
    "load_data": "leanres.data.sources",
    "MODELS": "leanres.models.zoo",
    "summarize": "leanres.models.cost",
    "RECIPES": "leanres.training.recipes",
    "Recipe": "leanres.training.recipe",
    "detect": "leanres.training.device",
    "find_lr": "leanres.lr_finder.finder",
    "fit": "leanres.runs.run",
    "resume": "leanres.runs.run",
    "load_predictor": "leanres.runs.predictor",
    "Prediction": "leanres.runs.predictor",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leanres' has no attribute {name!r}")
    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(module), own or name)


def __dir__() -> list[str]:
    return sorted(__all__)
