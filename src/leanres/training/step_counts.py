"""StepCounts: a recipe's epochs and shares of training as optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from leanres.training.distributed import Parts
from leanres.training.recipe import Recipe
from leanres.training.schedules import SchedulePoint, lr_factor, momentum_at


@dataclass(frozen=True)
class StepCounts:
    """A recipe counted in optimizer steps for a training split of a given size."""

    recipe: Recipe
    images: int
    batch_size: int = field(init=False)
    steps_per_epoch: int = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        # A split smaller than a batch trains on one batch. Where the last, partial one is left out,
        # that is another part of the data each epoch.
        batch = min(self.recipe.batch_size, self.images)
        per_epoch = (self.images if self.recipe.drop_last else self.images + batch - 1) // batch
        object.__setattr__(self, "batch_size", batch)
        object.__setattr__(self, "steps_per_epoch", per_epoch)
        object.__setattr__(self, "total", self.recipe.epochs * per_epoch)

    @property
    def images_per_step(self) -> int:
        """Images augmented for a step: a batch, times its repeats."""
        return self.batch_size * self.recipe.augment_repeats

    def parts(self, position: int) -> Parts:
        """The images of the step at that position of an epoch, in parts."""
        images = self.images_of_steps[-1 if position == self.steps_per_epoch - 1 else 0]
        return Parts(images, self.recipe.accumulate)

    @property
    def selected_per_step(self) -> int:
        """Images that the network trains on in a full step: all, or what the selector leaves."""
        return self.selected(self.images_per_step)

    def selected(self, images: int) -> int:
        """How many images of a step the network trains on."""
        return (
            max(1, round(self.recipe.select_fraction * images)) if self.recipe.selector else images
        )

    @property
    def images_of_steps(self) -> list[int]:
        """Images of each kind of step in an epoch: of a full one, and of the last if it differs."""
        last = (self.images - 1) % self.batch_size + 1
        partial = [] if self.recipe.drop_last or last == self.batch_size else [last]
        return [n * self.recipe.augment_repeats for n in (self.batch_size, *partial)]

    @property
    def selected_per_epoch(self) -> int:
        """Images that the network trains on in an epoch."""
        full, *partial = (self.selected(n) for n in self.images_of_steps)
        return full * (self.steps_per_epoch - len(partial)) + sum(partial)

    @property
    def warmup(self) -> int:
        """Steps of the lr's linear rise."""
        return round(self.recipe.warmup * self.total)

    @property
    def freeze_stem(self) -> int:
        """The step from which on the stem is fixed."""
        return round(self.recipe.freeze_stem_at * self.total)

    def lr_factor(self, step: int) -> float:
        """The share of the peak lr at `step`."""
        point = SchedulePoint(step, self.total, self.steps_per_epoch, self.recipe.lr)
        return lr_factor(self.recipe.schedule, point, self.warmup)

    def momentum(self, step: int) -> float | None:
        """The momentum at `step`, where the schedule cycles it; else None: the optimizer's own."""
        point = SchedulePoint(step, self.total, self.steps_per_epoch, self.recipe.lr)
        return momentum_at(self.recipe.schedule, point)

    def scale(self, step: int) -> float:
        """The share of an image's side that is trained on at `step`."""
        scale = 1.0
        for share, value in self.recipe.progressive_resizing:
            if step >= round(share * self.total):
                scale = value
        return scale
