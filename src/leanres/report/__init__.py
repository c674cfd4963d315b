"""Reports of runs: `leanres.report.figures` has each figure as a function of arrays."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "figures":
        raise AttributeError(f"module 'leanres.report' has no attribute {name!r}")
    return import_module("leanres.report.figures")  # matplotlib is imported with it
