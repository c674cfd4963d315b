"""Run folders -> one self-contained HTML page: no server, no fonts, no request to anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext
from markupsafe import Markup

from leanres.data.split import Dataset
from leanres.errors import UserError, printable, shortened
from leanres.io import write_bytes
from leanres.metrics.classification import (
    accuracy_interval,
    accuracy_text,
    choice_text,
    confusion,
    few_images,
    other_metrics,
    percent,
)
from leanres.report import figures, sections
from leanres.report.compare import cell_text, check_comparable, groups, table_row, verdicts
from leanres.report.network_sections import filters_and_batches, gradcam_section
from leanres.report.record import Record, read_record
from leanres.report.run_data import data_of_run, measured_split, with_predictions
from leanres.runs.images import difference
from leanres.runs.ledger import shown
from leanres.runs.predictor import Predictor, load_predictor
from leanres.runs.weights import WEIGHTS
from leanres.version import __version__

BUDGET = 5_000_000  # parameters
PAGE = "report.html"


def write_report(
    runs: Path | str | Sequence[Path | str],
    dataset: Dataset | None = None,
    *,
    out: Path | None = None,
    budget: int = BUDGET,
    layers: Sequence[str] = (),
) -> Path:
    """Write the page of one run, or one page that compares several runs, and return its path.

    The page is RUN/report.html for one run and report.html beside the first of several, unless
    `out` is given. `dataset` is what the runs were trained on: without it there are no images, maps
    or temperature, and the page says so. `layers` are the layers for Grad-CAM; the default are the
    last ones of the two smallest map sizes. UserError for a folder that is not a run, for runs on
    different data, for an unknown layer, and for predictions that are missing and cannot be
    computed.
    """
    records = gather(runs, dataset)
    page = (
        _run_page(records[0], dataset, budget, layers)
        if len(records) == 1
        else _compare_page(records, budget)
    )
    folder = records[0].folder if len(records) == 1 else records[0].folder.resolve().parent
    path = out or folder / PAGE
    write_bytes(path, page.encode(errors="replace"))  # a folder's name may hold any bytes
    return path


def gather(runs: Path | str | Sequence[Path | str], dataset: Dataset | None = None) -> list[Record]:
    """The records of comparable runs, with predictions. Raises UserError like `write_report`."""
    folders = [runs] if isinstance(runs, Path | str) else list(runs)
    if not folders:
        raise UserError("no run: give at least one run folder")
    records = [read_record(folder) for folder in folders]
    check_comparable(records)
    records = [with_predictions(record, data_of_run(record, dataset)) for record in records]
    check_comparable(records)  # now their labels can be compared as well
    return records


def _data_note(record: Record, dataset: Dataset | None) -> str:
    """Why the page shows no images."""
    why = "the images that it was trained on were not found"
    if dataset is not None:
        why = f"it was trained on other data ({difference(record.folder, dataset)})"
    return f"{why}: no pictures, maps or temperature (give its data with --data)"


def _run_page(record: Record, given: Dataset | None, budget: int, layers: Sequence[str]) -> str:
    dataset = data_of_run(record, given)
    if dataset is None:
        record = record.with_notes(_data_note(record, given))
    net = None
    if (record.folder / WEIGHTS).exists():
        net = load_predictor(record.folder, "cpu", "float32")
    elif layers:
        raise UserError(f"{record.folder} has no {WEIGHTS}: no layer can be explained yet")
    found = record.predictions
    images = None
    if found is not None and dataset is not None:
        images = measured_split(record, dataset).images.cpu()
    context: dict[str, Any] = {
        "record": record,
        "budget": budget,
        "charts": sections.training(record) if record.rows else [],
        "found": None,
        "inside": filters_and_batches(record, net, dataset),
        "maps": None,
    }
    if found is not None:
        counts = confusion(found.probs, found.labels)
        rows = sections.class_rows(counts, record.classes)
        context |= {
            "found": found,
            "class_rows": rows,
            "confusion": counts.tolist(),
            "class_charts": sections.class_charts(rows, counts),
            "pairs": sections.pair_rows(found, record.classes, images),
            "num_errors": sections.NUM_ERRORS,
            "errors": sections.error_tiles(found, record.classes, images),
            "calibration": _calibration(record, net, dataset),
            "maps": gradcam_section(record, net, images, layers),
        }
    return render("run.html.j2", context)


def _calibration(record: Record, net: Predictor | None, dataset: Dataset | None) -> dict[str, Any]:
    """A temperature is fitted only on val images on which the run was not measured."""
    assert record.predictions is not None
    val = None
    if record.split != "val" and dataset is not None and dataset.val and net is not None:
        val = (net.logits(dataset.val.images), dataset.val.labels.cpu())
    return sections.calibration(record, record.predictions, val)


def _compare_page(records: Sequence[Record], budget: int) -> str:
    rows = [table_row(record) for record in records]
    measured = [record for record in records if record.result is not None]
    context = {
        "records": records,
        "rows": rows,
        "columns": [key for key in rows[0] if any(row[key] is not None for row in rows)],
        "verdicts": verdicts(records),
        "groups": [group for group in groups(measured) if len(group.records) > 1],
        "charts": _overlaid(records),
        "pareto": _pareto(measured, budget) if measured else None,
        "budget": budget,
    }
    return render("compare.html.j2", context)


def _overlaid(records: Sequence[Record]) -> list[sections.Chart]:
    charts = []
    for kind, unit in (("loss", "nats"), ("accuracy", "")):
        for split in ("train", "val"):
            lines = {record.name: record.column(f"{split}_{kind}") for record in records}
            lines = {name: line for name, line in lines.items() if line[0]}
            if lines:
                figure = figures.curves(lines, unit, percent=not unit)
                title = f"{split.capitalize()} {kind}"
                caption = "One line per run, over its epochs."
                charts.append(sections.make_chart(title, figure, caption))
    return charts


def _pareto(records: Sequence[Record], budget: int) -> sections.Chart:
    results = [record.result for record in records if record.result is not None]
    figure = figures.pareto(
        [record.cost.params for record in records],
        [result["accuracy"] for result in results],
        [accuracy_interval(result) for result in results],
        [record.name for record in records],
        budget,
    )
    caption = (
        "Up and to the left is better. A run is filled if no other one is both smaller and more"
        " accurate. Bars are 95 % intervals; the dashed line is the budget."
    )
    return sections.make_chart("Accuracy against parameters", figure, caption)


@pass_eval_context
def _markdown(context: EvalContext, value: Any) -> Any:
    """A value of the card, where no text is a tag, a link or another cell; HTML escapes its own."""
    if context.autoescape or not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*<>|]|(?<=\])\()", r"\\\1", printable(value)).replace("&", "&amp;")


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("leanres.report"),
        autoescape=select_autoescape(["html.j2"]),
        finalize=_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A no-break space keeps the number and its unit on one line.
    env.filters["percent"] = lambda share, digits=2: percent(share, digits).replace(" ", "\u00a0")
    env.filters["code"] = lambda text: Markup(printable(text).replace("`", "'"))  # no end of it
    env.filters |= {"duration": sections.duration, "shown": shown, "short": shortened}
    env.globals |= {"cell_text": cell_text, "interval": accuracy_interval, "version": __version__}
    env.globals |= {"accuracy_text": accuracy_text, "other_metrics": other_metrics}
    env.globals |= {"few_images": few_images, "choice_text": choice_text}
    return env


def render(template: str, context: dict[str, Any]) -> str:
    """The template of that name, filled with the context."""
    return _environment().get_template(template).render(context)
