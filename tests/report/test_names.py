"""File names in reports: at every image, whole in its title, escaped and on one line."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from leanres.data.split import Dataset
from leanres.metrics.mistakes import worst_errors
from leanres.models.speednet import SpeedNetConfig
from leanres.report.page import write_report
from leanres.report.record import read_record
from leanres.report.text import text_report
from leanres.runs.fit import fit
from leanres.runs.layout import IMAGES, PREDICTIONS
from leanres.training.device import CPU
from leanres.training.recipes import RECIPES

FILES = [f"<b>\x1b[31m/a photo of the evening at the lake, number {i}.png" for i in range(400)]


@pytest.fixture(scope="module")
def named(digits: Dataset) -> Dataset:
    labels = digits.train.labels[:400].numpy()
    images = digits.train.images[:400]
    return Dataset.from_arrays(images, labels, files=FILES, classes=digits.train.classes)


@pytest.fixture(scope="module")
def run(named, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("named") / "run"
    recipe = replace(RECIPES["digits"], model=SpeedNetConfig((8,)), epochs=1, val=0.1)
    fit(folder, recipe, named, CPU("cpu", "float32", compiled=False))
    return folder


def test_tables_of_a_run_name_each_image(run, named):
    assert pq.read_table(run / PREDICTIONS)["file"].to_pylist() == list(named.test.files)
    known = set(pq.read_table(run / IMAGES)["file"].to_pylist())
    assert known == {name.replace("\x1b", "?") for name in FILES}


def test_every_image_of_the_page_has_its_name(run, named):
    found = read_record(run).predictions
    page = write_report(run, named).read_text()
    pattern = r'<img class="enlarges"[^>]* alt="([^"]*): labelled [^>]*>'
    pattern += r'<span class="file" title="([^"]*)">([^<]*)</span>'
    tiles = [tuple(map(html.unescape, tile)) for tile in re.findall(pattern, page)]
    assert all(alt == title for alt, title, _ in tiles)
    assert {title for _, title, _ in tiles} <= set(named.test.files)
    assert all(title.startswith("<b>?[31m/") and len(short) <= 22 for _, title, short in tiles)
    wrong = worst_errors(found.probs, found.labels, 32).tolist()
    errors = page[page.index("Most confident errors") : page.index("Least confident correct")]
    titles = [html.unescape(title) for title in re.findall('class="file" title="([^"]*)"', errors)]
    assert titles == [named.test.files[i] for i in wrong]
    for part in ("Most confused pairs", "Likely label errors", "Grad-CAM maps"):
        rest = page[page.rindex(part) :]
        assert 'class="file" title="&lt;b&gt;?[31m/' in rest
    assert html.escape(f"Grad-CAM++ of {named.test.files[wrong[0]]} at ") in page
    assert "<b>?" not in page
    assert "\x1b" not in page
    first = named.test.files[wrong[0]]
    assert f"most confident errors: {first} (" in text_report(read_record(run), 5_000_000)


def test_names_that_were_edited_cannot_control_anything(run, named, tmp_path):
    table = pq.read_table(run / PREDICTIONS)
    names = [f"\x1b\n<script>{i}" for i in range(len(table))]
    place = table.column_names.index("file")
    original = (run / PREDICTIONS).read_bytes()
    try:
        pq.write_table(table.set_column(place, "file", [names]), run / PREDICTIONS)
        page = write_report(run, named, out=tmp_path / "x.html").read_text()
    finally:
        (run / PREDICTIONS).write_bytes(original)
    assert page.count("<script>") == 1
    assert "\x1b" not in page


def test_images_without_names_have_their_place(three_runs, digits, tmp_path):
    page = write_report(three_runs / "a", digits, out=tmp_path / "x.html").read_text()
    found = read_record(three_runs / "a").predictions
    for i in worst_errors(found.probs, found.labels, 3).tolist():
        assert f'title="test[{i}]">test[{i}]</span>' in page
