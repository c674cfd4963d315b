"""What the tests of the commands share: a trained run, pictures, the check of a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path

import pytest
from PIL import Image

from leanres.cli import main
from leanres.data.split import Dataset
from leanres.models.config import FactoryConfig, ModelConfig
from leanres.models.cost import Summary, summarize

TINY = ("--set", "model={family='speednet', widths=[8, 16]}", "--set", "batch_size=100")


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Options that make a training on the digits take a second or two."""
    return (*TINY, "--no-report")  # the page has its own tests


@pytest.fixture(scope="session", autouse=True)
def _costs_once() -> Iterator[None]:
    """The same networks are listed by several tests: each is counted once."""
    once = cache(summarize)

    @wraps(summarize)
    def summary(network: ModelConfig, size: tuple[int, int, int] | None = None) -> Summary:
        return (summarize if isinstance(network, FactoryConfig) else once)(network, size)

    with pytest.MonkeyPatch.context() as patch:
        for room in ("models.cost", "training.recipes"):
            patch.setattr(f"leanres.{room}.summarize", summary)
        yield


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables get 300 columns, though they are printed into a file."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that `leanres train` wrote. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ["train", "digits", "--data", "digits", "--out", str(folder), "--epochs", "6", *TINY]
    with pytest.raises(SystemExit) as end:
        main([*words, "--no-report"])
    assert not end.value.code
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """Twelve test digits as 64x64 files, with one file that is damaged and one that is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    assert digits.test is not None
    for i in range(12):
        pixels = digits.test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"img{i}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="session")
def mistake() -> Callable[..., None]:
    """Check an outcome: one line on stderr with these parts, exit code 2, no traceback."""

    def check(outcome, *parts: str) -> None:
        assert outcome.code == 2
        lines = [line for line in outcome.err.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1, outcome.err
        for part in ("leanres: ", *parts):
            assert part in lines[0]

    return check
