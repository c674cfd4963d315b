"""The kernels in C on random shapes, between guard pages, compiled otherwise than usual."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leanres.kernels.build import library

pytestmark = pytest.mark.skipif(library() is None, reason="no own kernels here: PyTorch's are used")
UNDEFINED = ["-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]


@pytest.mark.parametrize("flags", [["-O0"], UNDEFINED], ids=["unoptimised", "checked"])
def test_kernels_stay_within_their_tensors_and_are_right(flags, tmp_path, monkeypatch):
    """Each check once, in a process of its own, which a wrong access kills."""
    monkeypatch.setenv("LEANRES_CACHE", str(tmp_path))
    command = [sys.executable, str(Path(__file__).with_name("kernels.py")), "9", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
