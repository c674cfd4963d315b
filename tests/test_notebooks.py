"""Every notebook runs from its first cell to its last, and is committed without outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.manager import KernelManager

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
TINY = """
from leanres.models.resnet import ResNetConfig

DATA, RANGE, tiny = "digits", {"steps": 40}, ResNetConfig((4, 8), (1, 1))
CHANGES = {"model": tiny, "epochs": 6, "batch_size": 200, "augment": (), "head_scale": 1.0}
"""


FRESH = """
%reset -f
import os, tempfile
os.chdir(FOLDER)
tempfile.tempdir = FOLDER
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One process for all notebooks: importing torch takes longer than running their cells."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


def shortened(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook in an empty namespace and folder, with a tiny network on the digits."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += TINY
    fresh = nbformat.v4.new_code_cell(FRESH.replace("FOLDER", repr(str(folder))))
    notebook.cells.insert(0, fresh)
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run_in_order_and_show_figures(path, tmp_path, kernel):
    notebook = shortened(nbformat.read(path, as_version=4), tmp_path)
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=600)
    try:
        client.execute(cleanup_kc=False)
    finally:
        client.kc.stop_channels()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])
