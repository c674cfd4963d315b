"""The page as a file: complete, self-contained, small and accessible."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.metrics.classification import accuracy_interval, accuracy_text, ece
from leanres.report.page import write_report
from leanres.report.record import read_record
from leanres.report.text import text_report, text_table
from leanres.runs.layout import HISTORY, PREDICTIONS, fingerprints
from leanres.runs.predictions import predictions_table
from leanres.runs.weights import WEIGHTS

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "p", "li", "dd", "h2", "h3") else ""

    def handle_data(self, data):
        self.text += data

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="session")
def html(three_runs, digits) -> str:
    return write_report(three_runs / "a", digits).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def compared(three_runs) -> str:
    return write_report([three_runs / "a", three_runs / "b", three_runs / "plain"]).read_text()


@pytest.fixture(params=["html", "compared"])
def page(request) -> Page:
    return Page(request.getfixturevalue(request.param))


def test_the_page_loads_nothing_from_elsewhere(page):
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, key, value)
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)


def test_no_style_refers_to_a_file(html, compared):
    for text in (html, compared):
        assert not re.findall(r"url\((?!#)[^)]*\)|@import|@font-face", text)


def test_every_image_has_an_alternative_text_and_every_figure_a_caption(page):
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    counts = Counter(tag for tag, _ in page.tags)
    assert counts["svg"] == counts["figure"] == counts["figcaption"]


def test_headings_descend_and_ids_are_unique(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert targets <= set(ids)


def test_tables_have_scopes_and_wide_ones_scroll_by_keyboard(page):
    assert all(head.get("scope") for head in page.all("th"))
    regions = [a for _, a in page.tags if a.get("role") == "region"]
    assert regions
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert page.all("html")[0]["lang"] == "en"
    assert {"header", "main", "footer", "nav", "caption"} <= {tag for tag, _ in page.tags}


def test_the_page_is_small(html, compared):
    assert len(html.encode()) < 1_000_000
    assert len(compared.encode()) < 500_000


def test_the_page_describes_the_run_and_its_result(html, three_runs):
    record, words = read_record(three_runs / "a"), Page(html).words
    low, high = accuracy_interval(record.result)
    assert f"{100 * record.result['accuracy']:.2f} % of 360 test images correct" in words
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in words
    assert "With it" not in words  # the recipe does not flip, so nothing is measured with flips
    assert f"{record.result['params']:,}, 0 % of the budget of 5,000,000" in words
    assert record.info["data"]["fingerprints"]["test"][:16] in words
    for part in ("Loss", "Gradient norm", "Speed", "Confusion matrix", "Most confused pairs"):
        assert part in words
    for part in ("Most confident errors", "Least confident correct", "Likely label errors"):
        assert part in words
    assert f"kernels: {record.info['hardware']['kernels']}" in words
    assert f"NLL {record.result['nll']:.4f}, ECE {100 * record.result['ece']:.2f} %" in words
    for part in ("Grad-CAM++", "Temperature", "First-layer filters", "Training images, epoch 3"):
        assert part in words
    assert "no command was recorded" in words  # it was started from Python
    assert "confident learning" in words
    assert "batch_size 2000 200" in words  # the recipe's difference from the default


def test_calibration_is_measured_on_predictions_and_fitted_on_val(html, three_runs):
    found, words = read_record(three_runs / "a").predictions, Page(html).words
    value = 100 * ece(found.probs.double(), found.labels)
    assert f"as trained {value:.2f} %" in words
    assert "fitted on 200 val images" in words
    assert "with temperature" in words


def test_without_val_images_no_temperature_is_fitted(three_runs, digits, tmp_path):
    page = write_report(three_runs / "plain", digits, out=tmp_path / "x.html").read_text()
    assert "The run held no val images out" in page
    assert "with temperature</th>" not in page


def test_no_temperature_is_fitted_on_val_if_the_run_is_measured_on_it(copied, digits):
    folder = copied()
    info = json.loads((folder / "run.json").read_text())
    table = pq.read_table(folder / PREDICTIONS).slice(0, 200)
    info["result"] |= {"split": "val", "n": 200}
    (folder / "run.json").write_text(json.dumps(info))
    pq.write_table(table, folder / PREDICTIONS)
    words = Page(write_report(folder, digits).read_text()).words
    assert (
        "A temperature fitted on the images that it is measured on would be too optimistic" in words
    )
    assert "test has not been read" in words


def test_without_the_data_there_are_figures_and_a_note(three_runs, tmp_path):
    page = Page(write_report(three_runs / "a", out=tmp_path / "x.html").read_text())
    assert "were not found: no pictures, maps or temperature" in page.words
    assert "Confusion matrix" in page.words
    assert len(page.all("img")) == 1  # the filters, which need only the weights


def test_data_that_the_run_was_not_trained_on_is_not_used(three_runs, digits, tmp_path):
    other = replace(digits, train=digits.train.subset(range(500)))
    page = write_report(three_runs / "a", other, out=tmp_path / "x.html").read_text()
    assert "on other data (937 of its 1,797 images are missing, 0 are new)" in page


def test_the_page_of_an_unfinished_run_says_so(copied, digits):
    folder = copied()
    info = json.loads((folder / "run.json").read_text())
    del info["result"]
    (folder / "run.json").write_text(json.dumps(info))
    for path in (folder / WEIGHTS, folder / PREDICTIONS):
        path.unlink()
    words = Page(write_report(folder, digits).read_text()).words
    assert "no result yet" in words
    assert "3 of 3 epochs" in words
    assert "Learning rate" in words
    (folder / HISTORY).unlink()
    assert "0 of 3 epochs" in Page(write_report(folder, digits).read_text()).words
    with pytest.raises(UserError, match="no layer can be explained yet"):
        write_report(folder, digits, layers=["stem"])


def test_a_run_with_an_unknown_setting_has_a_page_without_batches(copied, digits):
    folder = copied()
    info = json.loads((folder / "run.json").read_text())
    info["recipe"]["from_a_plugin"] = 1
    (folder / "run.json").write_text(json.dumps(info))
    words = Page(write_report(folder, digits).read_text()).words
    assert "Training images, epoch" not in words
    assert "First-layer filters" in words
    assert "from_a_plugin" in words


def test_names_cannot_inject_html(copied):
    folder = copied(new="<img src=x onerror=alert(1)>")
    info = json.loads((folder / "run.json").read_text())
    classes = ["<script>alert(1)</script>", *info["preprocess"]["classes"][1:]]
    info["preprocess"]["classes"] = classes
    info["origin"] = {"command": "leanres </pre><script>"}
    (folder / "run.json").write_text(json.dumps(info))
    table = pq.read_table(folder / PREDICTIONS)
    names = [f"p_{classes[0]}" if name == "p_0" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), folder / PREDICTIONS)
    page = Page(write_report(folder).read_text())
    assert len(page.all("script")) == 1
    assert "<script>alert(1)</script>" in page.text


def test_chosen_layers_are_shown_and_unknown_ones_are_refused(three_runs, digits, tmp_path):
    out = tmp_path / "x.html"
    words = Page(write_report(three_runs / "a", digits, out=out, layers=["stem"]).read_text()).words
    assert "Layers: stem (31x31)" in words
    with pytest.raises(UserError, match=r"no layer with maps 'stages\.7'.*there are: .*stem"):
        write_report(three_runs / "a", digits, out=out, layers=["stages.7"])


def test_several_runs_are_one_table_and_a_verdict(compared, three_runs):
    page = Page(compared)
    assert "a, b, plain" in page.words
    assert "Holm" in page.words
    assert len([t for t in page.all("table") if t.get("class") == "sortable"]) == 1
    for part in ("Val accuracy", "Accuracy against parameters", "receptive field"):
        assert part in page.words
    with pytest.raises(UserError, match="no run"):
        write_report([])


def test_the_text_report_has_the_essentials(three_runs):
    record = read_record(three_runs / "a")
    text = text_report(record, 5_000_000)
    assert f"\ntest accuracy {accuracy_text(record.result)}\n" in text
    assert "hardest classes: " in text
    assert "most confused: " in text
    assert "recipe: " in text
    assert f"kernels: {record.info['hardware']['kernels']}" in text


def test_a_custom_network_has_a_short_name(three_runs, html):
    assert "<dt>Network</dt><dd>custom speednet</dd>" in html
    assert html.count("&#34;family&#34;") == 2  # among the recipe's differences and settings
    text = text_report(read_record(three_runs / "a"), 5_000_000)
    assert text.startswith("a: custom speednet on digits\n")


def test_the_text_table_has_a_row_per_run(three_runs):
    records = [read_record(three_runs / name) for name in ("a", "plain")]
    heads, rows = text_table(records)
    metrics = ["accuracy", "with TTA", "NLL", "ECE", "macro F1"]
    assert heads == ["run", "network", "parameters", "epochs", "seed", *metrics]
    assert [row[:2] for row in rows] == [["a", "custom speednet"], ["plain", "custom speednet"]]
    assert [row[5] for row in rows] == [f"{100 * r.result['accuracy']:.2f} %" for r in records]


def test_ten_thousand_images_take_a_few_seconds_and_little_space(copied, tmp_path):
    """CIFAR-10's size with made-up images and predictions, without inference."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(10_000) % 10
    images = torch.randint(256, (10_000, 3, 32, 32), generator=rng, dtype=torch.uint8)
    classes = tuple("0123456789")
    test = Split(images, labels, classes)
    data = Dataset("made-up", test.subset(range(1000)), None, test)
    logits = torch.randn(10_000, 10, generator=rng)
    logits[torch.arange(10_000), labels] += 3
    folder = copied("plain")
    info = json.loads((folder / "run.json").read_text())
    info["data"]["fingerprints"] = fingerprints(data)
    info["result"] |= {"n": 10_000}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / PREDICTIONS).write_bytes(predictions_table(logits.softmax(1), test))
    begin = time.process_time()
    page = write_report(folder, data)
    # 4.3 s on a 2.5 GHz Xeon core; CPU time, because other programs may run on the machine.
    assert time.process_time() - begin < 20
    assert page.stat().st_size < 3_000_000
    assert np.isfinite(json.loads((folder / "run.json").read_text())["result"]["nll"])
