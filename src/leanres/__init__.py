"""Small residual networks for small images: design, train, examine, ship.

    import leanres

    data = leanres.load_data("cifar10")  # or "digits", or a folder of images
    result = leanres.fit("runs/first", leanres.RECIPES["speed"], data)
    predictor = leanres.load_predictor("runs/first")
    print(result["accuracy"], predictor.evaluate(data.test)["per_class"])

Names are imported when first used, so `import leanres` itself does not import torch.
"""

from importlib import import_module
from typing import Any

from leanres.version import __version__

_MODULES = {  # public name -> its module, in the order in which one needs them
    "load_data": "leanres.data.sources",
    "Dataset": "leanres.data.split",
    "Split": "leanres.data.split",
    "load_plugin": "leanres.plugins",
    "MODELS": "leanres.models.zoo",
    "summarize": "leanres.models.cost",
    "RECIPES": "leanres.training.recipes",
    "Recipe": "leanres.training.recipe",
    "AUGMENTS": "leanres.augment.registry",
    "MIXES": "leanres.augment.mix",
    "LOSSES": "leanres.training.losses",
    "OPTIMIZERS": "leanres.training.optim",
    "SCHEDULES": "leanres.training.schedules",
    "SOURCES": "leanres.data.sources",
    "METRICS": "leanres.metrics.classification",
    "TARGETS": "leanres.ship.export",
    "Device": "leanres.training.device",
    "detect": "leanres.training.device",
    "find_lr": "leanres.lr_finder.finder",
    "fit": "leanres.api",
    "resume": "leanres.api",
    "cross_validate": "leanres.trials.folds",
    "load_predictor": "leanres.runs.predictor",
    "evaluate": "leanres.runs.ensemble",
    "predict": "leanres.api",
    "compare": "leanres.api",
    "Predictor": "leanres.runs.predictor",
    "Prediction": "leanres.runs.predictor",
    "preprocess": "leanres.data.image_files",
    "write_report": "leanres.report.page",
    "export": "leanres.ship.export",
    "UserError": "leanres.errors",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "report":
        return import_module("leanres.report")
    if name not in _MODULES:
        raise AttributeError(f"module 'leanres' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
