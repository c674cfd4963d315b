"""Progress as people expect it: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from leanres.cli.console import console

if TYPE_CHECKING:
    from leanres.runs.run import Run
    from leanres.training.loop import TrainState

REFRESH_S = 1.0  # reading the loss waits for the device: not at every step


class Live:
    """While entered, shows where the training is; `step` after each step, `row` per epoch."""

    def __init__(self, run: Run, stderr: bool = False) -> None:
        self.run = run
        self.console = console(stderr)
        columns = (
            TextColumn("epoch {task.fields[epoch]}/" + str(run.recipe.epochs)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.progress.add_task(
            "", total=run.counts.total, completed=run.state.step, epoch=1, facts=""
        )
        self.began, self.first = time.perf_counter(), run.state.step
        self.shown = 0.0

    def __enter__(self) -> Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, state: TrainState) -> None:
        """Refresh the live line, at most once a second."""
        now = time.perf_counter()
        if not self.console.is_terminal or now - self.shown < REFRESH_S:
            return
        self.shown = now
        counts = self.run.counts
        rate = (state.step - self.first) * counts.images_per_step / (now - self.began)
        self.progress.update(
            self.task,
            completed=state.step,
            epoch=min(state.step // counts.steps_per_epoch + 1, self.run.recipe.epochs),
            facts=f"{_now(state, counts.selected_per_step)} lr {_lr(state):.3g}"
            f"  {rate:,.0f} images/s ",
        )

    def row(self, row: dict[str, Any]) -> None:
        """Print an epoch's line."""
        val = (
            f"  val {100 * row['val_accuracy']:6.2f} % loss {row['val_loss']:.4f}"
            if "val_accuracy" in row
            else ""
        )
        self.console.print(
            f"epoch {row['epoch']:>3}/{self.run.recipe.epochs}"
            f"  train {100 * row['train_accuracy']:6.2f} % loss {row['train_loss']:.4f}{val}"
            f"  lr {row['lr']:.3g}  {row['images_per_s']:,.0f} images/s  {row['seconds']:.1f} s"
        )


def _now(state: TrainState, batch: int) -> str:
    if not state.losses:
        return ""
    correct = 100 * float(state.correct[-1]) / batch
    return f"loss {float(state.losses[-1]):.3f}  accuracy {correct:.0f} % "


def _lr(state: TrainState) -> float:
    return float(state.optimizers[0].param_groups[0]["lr"])
