"""Target: one kind of file that a trained network is shipped as."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leanres.errors import UserError
from leanres.models.preprocess import ImageClassifier


@dataclass(frozen=True)
class Target:
    """How a file is written, and how it answers when it is read back.

    `write(path, classifier, config, full)` writes the network and its preprocessing; with `full`
    as float32 even if the target rounds. `probabilities(path, images)` runs the file as its users
    do: uint8 (N, 3, size, size) -> float32 (N, K).
    """

    write: Callable[[Path, ImageClassifier, Any, bool], None]
    probabilities: Callable[[Path, Tensor], Tensor]
    rounds: bool = False  # weights are stored in fewer bits, unless `full` is given
    extra: str = ""  # the extra of `pip install 'leanres[...]'` that installs `packages`
    packages: tuple[str, ...] = ()

    def check_installed(self) -> None:
        """UserError where a package is missing."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{package} is not installed: pip install 'leanres[{self.extra}]'")
