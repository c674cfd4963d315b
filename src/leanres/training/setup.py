"""Setup: recipe, training images, normalisation and device, passed to the loop as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from leanres.data.split import Split
from leanres.models.preprocess import Normalize
from leanres.training.device import Device
from leanres.training.recipe import Recipe, StepCounts


@dataclass(frozen=True)
class Setup:
    """A recipe, the training images (already on the device), their normalisation, the device."""

    recipe: Recipe
    train: Split
    normalize: Normalize
    device: Device

    @property
    def normalizers(self) -> tuple[nn.Module | None, nn.Module]:
        """What normalises before the augmentation, and after it: one of them does nothing."""
        first = self.recipe.normalize_first
        return (self.normalize, nn.Identity()) if first else (None, self.normalize)

    @cached_property
    def counts(self) -> StepCounts:
        """The recipe in optimizer steps."""
        return StepCounts(self.recipe, len(self.train))
