"""Files and option values that were made to hurt: each ends in one line, or is read as it should.

Every input is read in a process of its own, with 5 seconds and 1 GiB. What counts as wrong: code of
the input ran, the process crashed, hung or ended in a traceback, or it took what it must refuse.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from forks import OK, TOLD, TRACEBACK, Outcome, fork
from progress import shown

from hostile.archives import archives
from hostile.cases import MARK, Case
from hostile.images import images
from hostile.odd_files import odd_files
from hostile.options import options
from hostile.pickles import pickles
from hostile.readers import readers
from hostile.text_files import jsons, texts
from hostile.weights import weights
from leanres.cli import OUT_OF_MEMORY
from leanres.report import page  # noqa: F401  # once, not in each process that reports

MEMORY = 1 << 30


def judge(case: Case, end: Outcome, folder: Path) -> str:
    """What went wrong; "" where nothing did."""
    if (folder / MARK).exists():
        return "executed"
    if end.code == -signal.SIGALRM:
        return "hung"
    if end.code < 0:
        return f"crashed by signal {-end.code}"
    last = (end.message.strip().splitlines() or [""])[-1]
    if end.code == TRACEBACK and not any(words in last for words in OUT_OF_MEMORY):
        return f"traceback: {last[:300]}"
    return "taken" if end.code == OK and case.refused else ""


def main(share: float = 1.0, seconds: float = 5, seed: int = 0) -> dict[str, Any]:
    """Inputs by kind, how they ended, and what went wrong; `share` of about 16,000 inputs."""
    rng, ends, inputs, wrong = random.Random(seed), Counter[str](), Counter[str](), []
    own = patch.dict(os.environ)
    with TemporaryDirectory() as name, contextlib.chdir(name), own:
        folder = Path(name).resolve()
        os.environ["LEANRES_DATA"] = os.environ["LEANRES_CACHE"] = str(folder / "cache")
        (folder / "odd").mkdir()
        cases = [
            *pickles(folder, round(3000 * share), rng),
            *archives(folder, round(300 * share), rng),
            *images(folder, round(700 * share), rng),
            *some(weights(folder, round(500 * share), rng), share, rng),
            *texts(folder, round(250 * share), rng),
            *jsons(folder, round(300 * share), rng),
            *readers(folder, max(12, round(1000 * share)), rng),
            *spread(odd_files(folder / "odd"), share),
            *some(options(round(1000 * share), rng), share, rng),
        ]
        for case in shown(cases, "hostile inputs"):
            end = fork(case.read, seconds, MEMORY)
            inputs[case.kind] += 1
            ends[{OK: "read", TOLD: "one line"}.get(end.code, "other")] += 1
            if reason := judge(case, end, folder):
                wrong.append(f"{case.kind} {case.name}: {reason}")
    figures = {"inputs": inputs.total(), "by_kind": dict(inputs), "ends": dict(ends)}
    return figures | {"wrong": wrong}


def spread(cases: Iterator[Case], share: float) -> list[Case]:
    """All, or every fourth: with 9 odd files in 15 places each file and each place occurs."""
    return list(cases)[:: 1 if share >= 1 else 4]


def some(cases: Iterator[Case], share: float, rng: random.Random) -> list[Case]:
    """A share of them, drawn."""
    found = list(cases)
    return found if share >= 1 else rng.sample(found, max(1, round(share * len(found))))
