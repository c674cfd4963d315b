"""What `import leanres` offers for whole trainings: fit, resume, predict, compare.

They are the commands `train`, `resume`, `predict` and `compare` for Python: the same run folders,
the same lines while they train, results as values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leanres.cli.progress import Live, headline
from leanres.data.image_files import Unreadable
from leanres.data.split import Dataset
from leanres.data.unlabelled import Images
from leanres.errors import UserError
from leanres.report.page import write_report
from leanres.runs.fit import complete, with_val
from leanres.runs.layout import load_data_of
from leanres.runs.predictor import Prediction, load_predictor
from leanres.runs.run import Run, create, device_of, reopen
from leanres.runs.run_json import INFO, matches_run, read_info
from leanres.training.device import Device, detect
from leanres.training.recipe import Recipe
from leanres.trials.compare import compare_recipes

OnEpoch = Callable[[dict[str, Any]], object]


def fit(
    folder: Path | str,
    recipe: Recipe,
    data: Dataset,
    device: Device | None = None,
    *,
    exist_ok: bool = False,
    hold_out_val: bool = True,
    progress: bool = True,
    report: bool = False,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train `recipe` on `data` into a run folder, measure it once; the result, as run.json has it.

    exist_ok: a run of the same recipe that is there already is continued, or its result returned.
    hold_out_val: of data with neither test nor val images a tenth is held out as val and measured;
    False trains on all and measures nothing. progress: print a line per epoch. report: write
    report.html into the folder. on_epoch: called with each epoch's row of metrics, as for a live
    curve. Ctrl-C saves and raises Stopped, a KeyboardInterrupt; `resume(folder)` continues.
    UserError where something does not fit.
    """
    folder, notes = Path(folder), list[str]()
    if hold_out_val:
        recipe, notes = with_val(recipe, data, "hold_out_val=False")
    if exist_ok and (folder / INFO).exists():
        if not matches_run(read_info(folder, queued=True), recipe):
            raise UserError(f"{folder} holds a run of another recipe: name another folder")
        return resume(
            folder, data=data, device=device, progress=progress, report=report, on_epoch=on_epoch
        )
    device = device or detect("auto", recipe.precision, recipe.compiled)
    device.tune()
    run = create(folder, recipe, data, device)
    run.notes = notes + run.notes
    return _train(run, progress, report, on_epoch)


def resume(
    folder: Path | str,
    epochs: int | None = None,
    *,
    data: Dataset | None = None,
    device: Device | None = None,
    progress: bool = True,
    report: bool = False,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Continue a run that was stopped, killed or queued, to its end; its result, as `fit`'s.

    `epochs` extends a finished one; without it, a finished one's result is returned. The data is
    loaded from where the run had it, unless it is given. UserError where it is not the data that
    the run was trained on.
    """

    def on(info: dict[str, Any]) -> Device:
        known = device or device_of(info)
        known.tune()
        return known

    run = reopen(Path(folder), lambda info: data or load_data_of(info), on, epochs)
    if run.is_finished and "result" in run.info:
        run.release()
        return dict(run.info["result"])
    return _train(run, progress, report, on_epoch)


def _train(run: Run, progress: bool, report: bool, on_epoch: OnEpoch | None) -> dict[str, Any]:
    live = Live(run) if progress else None
    if live:
        live.console.print(headline(run), highlight=False)
        for note in run.notes:
            live.console.print(f"note: {note}", highlight=False)

    def each_epoch(row: dict[str, Any]) -> None:
        if live:
            live.row(row)
        if on_epoch:
            on_epoch(row)

    with live or nullcontext():
        result = complete(run, live.step if live else lambda state: None, each_epoch)
    if report:
        write_report(run.folder, run.dataset)
    return result


def predict(
    target: Path | str,
    images: Images,
    *,
    top: int | None = None,
    tta: str = "none",
    device: str = "auto",
) -> list[Prediction | Unreadable]:
    """Classify images with a run folder or weights file: `Predictor.predict`, as a list.

    images: paths of image files, folders or batches; pictures of Pillow's; or an array (N, H, W, C)
    or (N, C, H, W), uint8 or floats from 0 to 1. For many calls keep `load_predictor(target)`.
    """
    return list(load_predictor(target, device).predict(images, tta, top))


def compare(
    recipes: Mapping[str, Recipe],
    data: Dataset,
    folder: Path | str = "runs/compare",
    seeds: Sequence[int] = (0, 1, 2),
    *,
    measure: str = "val",
    device: Device | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train each recipe with each seed; a row for each, with its paired difference from the first.

    A row has variant, mean, sd, accuracies by seed, and from the second on `difference`: mean,
    half_width (95 %), n and verdict. Finished runs in `folder` are kept, interrupted ones continue.
    UserError where there are no images to measure on, and where a training fails.
    """

    def watch(event: Any) -> None:
        if progress:
            print(f"{event.kind:8} {event.job.folder}")

    return compare_recipes(
        recipes, data, folder, seeds, measure=measure, device=device, watch=watch
    )
