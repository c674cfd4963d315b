"""Settings that are younger than some run folders. Imports nothing, as the ledger wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A run whose recipe lacks one of these trained as its default says.
YOUNGER: dict[str, Any] = {
    "augment_repeats": 1,
    "selector": "",
    "select_fraction": 0.5,
    "teacher": "",
    "distill_weight": 0.7,
    "distill_temperature": 2.0,
    "sam_rho": 0.0,
    "sam_adaptive": False,
    "head_scale": 1.0,
}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain settings of any version, with those that have come since."""
    return {**settings, **{k: v for k, v in YOUNGER.items() if k not in settings}}
