"""Early stopping: the epoch that was best on val, and whether a training has ended by it.

Functions of the history, one row per finished epoch: a training that is resumed decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanres.errors import UserError
from leanres.training.recipe import Recipe


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The epoch of the highest val accuracy, from 1: the first of equal ones. 0: none is done."""
    if not history:
        return 0
    best: int = max(history, key=lambda row: row["val_accuracy"])["epoch"]  # max takes the first
    return best


def stopped_early(history: Sequence[Mapping[str, Any]], stop_after: int) -> bool:
    """Whether the last `stop_after` epochs were not better on val than one before; 0: never."""
    return bool(stop_after) and len(history) - best_epoch(history) >= stop_after


def check_val(recipe: Recipe, has_val: bool) -> None:
    """UserError where the recipe chooses an epoch on val and there are no val images."""
    if recipe.chooses_on_val and not has_val:
        name = "keep_best" if recipe.keep_best else "stop_after"
        raise UserError(
            f"{name} chooses an epoch on val, and there are no val images: --set val=0.1 holds a"
            " tenth of train out"
        )
