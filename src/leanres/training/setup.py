"""Setup: what a training is made of, handed to the loop as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from leanres.data.split import Split
from leanres.models.preprocess import Normalize
from leanres.training.device import Device
from leanres.training.recipe import Recipe, StepCounts


@dataclass(frozen=True)
class Setup:
    """A recipe, the images to train on (they lie on the device), how they are normalised, where."""

    recipe: Recipe
    train: Split
    normalize: Normalize
    device: Device

    @cached_property
    def counts(self) -> StepCounts:
        """The recipe in optimizer steps."""
        return StepCounts(self.recipe, len(self.train))
