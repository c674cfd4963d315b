"""Setup: recipe, training images, normalisation and device, passed to the loop as one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from leanres.data.split import Split
from leanres.errors import UserError
from leanres.models.preprocess import Normalize
from leanres.registry import unknown
from leanres.training.device import Device
from leanres.training.distributed import ALONE, World
from leanres.training.recipe import Recipe
from leanres.training.step_counts import StepCounts


@dataclass(frozen=True)
class Setup:
    """A recipe, the training images (on `device.augments_on`), their normalisation, the device.

    `world` are the processes that train together.
    """

    recipe: Recipe
    train: Split
    normalize: Normalize
    device: Device
    world: World = ALONE

    @property
    def normalizers(self) -> tuple[nn.Module | None, nn.Module]:
        """What normalises before the augmentation, and after it: one of them does nothing."""
        if self.recipe.normalize_first:
            return copy.deepcopy(self.normalize).to(self.train.images.device), nn.Identity()
        return None, self.normalize

    @cached_property
    def class_weights(self) -> Tensor | None:
        """The loss's weight of each class, (K,) float32; None where the recipe has none.

        "balanced" is as scikit-learn's compute_class_weight. UserError for a class that is unknown.
        """
        given, names = self.recipe.class_weights, list(self.train.classes)
        if not given:
            return None
        if isinstance(given, str):
            counts = self.train.labels.bincount(minlength=len(names)).clamp(min=1)
            return (len(self.train) / (len(names) * counts.float())).to(self.device.name)
        for name in given:
            if name not in names:
                raise UserError(f"class_weights: {unknown('class', name, names)}")
        weights = [given.get(name, 1.0) for name in names]
        return torch.tensor(weights, device=self.device.name)

    @cached_property
    def counts(self) -> StepCounts:
        """The recipe in optimizer steps."""
        return StepCounts(self.recipe, len(self.train))
