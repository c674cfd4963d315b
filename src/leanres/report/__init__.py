"""Reports: run folders -> one self-contained page, and each of its figures as a function.

Names are imported on first use, so that `leanres --help` loads neither torch nor matplotlib.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "write_report": "leanres.report.page",
    "text_report": "leanres.report.text",
    "Record": "leanres.report.record",
    "read_run": "leanres.report.record",
    "curves": "leanres.report.figures",
    "per_class": "leanres.report.figures",
    "confusion_matrix": "leanres.report.figures",
    "prediction_counts": "leanres.report.figures",
    "confidence_histogram": "leanres.report.figures",
    "reliability_diagram": "leanres.report.figures",
    "pareto": "leanres.report.figures",
    "image_grid": "leanres.report.pictures",
    "heat_maps": "leanres.report.pictures",
    "filters": "leanres.report.pictures",
    "to_svg": "leanres.report.style",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leanres.report' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
