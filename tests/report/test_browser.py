"""The page in headless Chromium: three widths, both colour schemes, no requests, sorting."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanres.report.page import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium, chromium-browser or google-chrome on this machine"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no request ever reaches a host
)
WIDTHS = (360, 800, 1600)
# A window is at least 500 px wide, a frame can be narrower. --dump-dom prints what the probe finds.
FRAME = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><body style="margin:0"><pre id="probe"></pre>
<script>onmessage = event => document.getElementById("probe").textContent = event.data;</script>
<iframe src="SOURCE" title="page" style="border:0; width:WIDTHpx; height:900px"></iframe>
"""
PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e =>
    !e.closest(".scroll, svg, pre, .skip") && e.getBoundingClientRect().right > innerWidth + 1);
  const table = document.querySelector("table.sortable"), body = table.tBodies[0];
  const column = place => [...body.rows].map(row => row.cells[place].textContent.trim());
  const place = [...table.tHead.rows[0].cells].findIndex(h => h.textContent.trim() === "accuracy");
  const before = column(0), button = table.tHead.rows[0].cells[place].querySelector("button");
  button.click();
  const up = column(place), rising = button.closest("th").getAttribute("aria-sort");
  button.click();
  const down = column(place), falling = button.closest("th").getAttribute("aria-sort");
  table.tHead.rows[0].cells[0].querySelector("button").click();
  const found = {
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    wide: wide.map(e => e.tagName + "." + e.className).slice(0, 5),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    before, up, down, rising, falling, named: column(0),
    images: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    small: Math.min(...[...document.querySelectorAll("figure svg text")].map(
      e => parseFloat(getComputedStyle(e).fontSize)
        * Math.min(1, e.ownerSVGElement.getBoundingClientRect().width
                      / e.ownerSVGElement.viewBox.baseVal.width))),
  };
  document.querySelector("button.enlarge")?.click();
  const dialog = document.querySelector("dialog");
  found.large = dialog.open && {
    pixels: dialog.querySelector("img").width, text: dialog.querySelector("p").textContent,
    right: dialog.getBoundingClientRect().right,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""


def chromium(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the browser once with a new, empty profile."""
    words = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def pages(three_runs, digits, tmp_path_factory) -> dict[str, Path]:
    """A run's page and a comparison, each also with the probe in it."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [three_runs / name for name in ("a", "b", "plain")]
    pages = {
        "run": write_report(runs[0], digits, out=folder / "run.html"),
        "compare": write_report(runs, out=folder / "compare.html"),
    }
    for page in list(pages.values()):
        probed = page.read_text().replace("</body>", f"{PROBE}</body>")
        page.with_name(f"probed-{page.name}").write_text(probed)
    return pages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "compare"])
def test_the_page_works(pages, tmp_path, name, width, scheme):
    probed = pages[name].with_name(f"probed-{pages[name].name}")
    page, log = tmp_path / "frame.html", tmp_path / "net.json"
    page.write_text(FRAME.replace("SOURCE", probed.as_uri()).replace("WIDTH", str(width)))
    flags = ["--window-size=1700,1000", "--dump-dom", f"--log-net-log={log}"]
    flags += ["--force-dark-mode"] if scheme == "dark" else []
    done = chromium(page, tmp_path / "profile", *flags)
    # Console messages, blocked requests included, are marked with this word.
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(re.search('id="probe">(.+?)</pre>', done.stdout)[1]))
    assert found["width"] == width
    assert found["scroll"] <= width, f"wider than the window: {found['wide']}"
    assert found["wide"] == []
    assert found["dark"] == (scheme == "dark")
    light = sum(map(int, re.findall(r"\d+", found["paper"])[:3]))
    assert (light < 150) == (scheme == "dark")
    assert found["images"] == 0  # no broken image
    assert found["small"] >= 7  # px, the smallest text in a figure
    up, down = (
        [float(re.match(r"[\d.]+", text)[0]) for text in found[key] if text[0].isdigit()]
        for key in ("up", "down")
    )
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert (found["rising"], found["falling"]) == ("ascending", "descending")
    assert found["named"] == sorted(found["before"])
    if name == "run":  # a click on the first image
        assert found["large"]["pixels"] in range(256, 481, 32)
        assert re.fullmatch(
            r"test\[\d+\]: labelled \d, predicted \d with [\d.]+ %", found["large"]["text"]
        )
        assert found["large"]["right"] <= width
    assert requests(log) == []


def requests(log: Path) -> list[str]:
    """The URLs that the page requested.

    The browser's own requests, such as for the time, have "not an origin" as their initiator.
    """
    lines = [line for line in log.read_text(errors="replace").splitlines() if "initiator" in line]
    requested = [line for line in lines if '"initiator":"not an origin"' not in line]
    return [re.search(r'"url":"([^"]+)"', line)[1] for line in requested]


def test_a_request_and_an_error_would_be_noticed(pages, tmp_path):
    """The checks above work: a page with a request and an error is caught."""
    bad, log = tmp_path / "bad.html", tmp_path / "net.json"
    text = (
        pages["run"]
        .read_text()
        .replace(
            "</body>",
            '<img src="http://127.0.0.1:9/x.png" alt="x"><script>nothing()</script></body>',
        )
    )
    bad.write_text(text)
    done = chromium(bad, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert any("Content Security Policy" in line for line in console)
    assert any("nothing is not defined" in line for line in console)
    assert requests(log) == []  # the policy stops it before the network
    bad.write_text(text.replace("Content-Security-Policy", "X"))
    chromium(bad, tmp_path / "other", "--dump-dom", f"--log-net-log={log}")
    assert set(requests(log)) == {"http://127.0.0.1:9/x.png"}


def test_the_page_reads_without_its_script(pages, tmp_path):
    """Tables are complete and in order; there are no buttons without a script."""
    page = tmp_path / "plain.html"
    page.write_text(re.sub(r"<script>.*?</script>", "", pages["run"].read_text(), flags=re.DOTALL))
    dom = chromium(page, tmp_path / "profile", "--dump-dom").stdout
    assert "<button" not in dom
    names = re.findall(r'<tr><th scope="row">(\d)</th>', dom)
    assert names[:10] == [str(i) for i in range(10)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_drawn_in_the_schemes_colours(pages, tmp_path, scheme):
    shot = tmp_path / "shot.png"
    flags = ["--window-size=800,2400", f"--screenshot={shot}"]
    flags += ["--force-dark-mode"] if scheme == "dark" else []
    chromium(pages["run"], tmp_path / "profile", *flags)
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3).astype(int)
    blue = {"light": (0x00, 0x68, 0xA8), "dark": (0x58, 0xB4, 0xF0)}[scheme]
    paper = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x12, 0x16, 0x1C)}[scheme]
    assert (abs(pixels - blue).max(1) <= 2).sum() > 300  # lines, points and the budget's bar
    assert (abs(pixels - paper).max(1) <= 2).mean() > 0.5


def test_the_page_prints_on_few_pages(pages, tmp_path):
    out = tmp_path / "page.pdf"
    chromium(pages["run"], tmp_path / "profile", f"--print-to-pdf={out}", "--no-pdf-header-footer")
    sheets = len(re.findall(rb"/Type\s*/Page\b", out.read_bytes()))
    assert 3 <= sheets <= 14
