"""Every notebook runs from its first cell to its last, and is committed without output."""

from __future__ import annotations

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
TINY = """
from leanres.models.resnet import ResNetConfig

DATA, TEST_STEPS, tiny = "digits", 40, ResNetConfig((4, 8), (1, 1))
CHANGES = {"model": tiny, "epochs": 6, "batch_size": 200, "augment": ()}
"""


def quick(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same with a tiny network on the digits, where it has a cell of parameters."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += TINY
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_order_and_show_figures(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the kernel is a process of its own
    notebook = quick(nbformat.read(path, as_version=4))
    where = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_output(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])
