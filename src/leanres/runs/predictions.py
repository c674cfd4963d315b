"""predictions.parquet: label, prediction and probabilities of each image that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from leanres.data.split import Split
from leanres.errors import printable
from leanres.io import MIB, read_parquet

MAX_BYTES = 1024 * MIB


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, K) float32 and labels (N,) int64 of the images of a run's evaluation.

    `files` names them, or is empty; `split` is what they are of: "test" or "val".
    """

    probs: Tensor
    labels: Tensor
    files: tuple[str, ...] = ()
    split: str = "test"

    def file(self, index: int) -> str:
        """The name of an image, as one line; "test[17]" where it has none."""
        return printable(self.files[index]) if self.files else f"{self.split}[{index}]"

    @property
    def predicted(self) -> Tensor:
        """The most likely class of each image, (N,) int64."""
        return self.probs.argmax(1)

    @property
    def correct(self) -> Tensor:
        """Whether each prediction is correct, (N,) bool."""
        return self.predicted == self.labels


def predictions_table(probs: Tensor, split: Split, **more: Any) -> bytes:
    """A parquet table: index, label, predicted, confidence, file, `more`, p_CLASS of each class.

    `more` are further columns, one value an image.
    """
    shares = probs.numpy().astype(np.float32)
    columns: dict[str, Any] = {
        "index": np.arange(len(shares)),
        "label": split.labels.cpu().numpy(),
        "predicted": shares.argmax(1),
        "confidence": shares.max(1),
    }
    columns |= {"file": pa.array(split.files)} if split.files else {}
    columns |= more | {f"p_{name}": shares[:, k] for k, name in enumerate(split.classes)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def read_predictions(path: Path, classes: tuple[str, ...], split: str) -> Predictions:
    """What `predictions_table` wrote. ValueError, KeyError or ArrowException if it is damaged."""
    table = read_parquet(path, MAX_BYTES)
    columns = [table[f"p_{name}"].to_numpy() for name in classes]
    probs = torch.from_numpy(np.stack(columns, 1).astype(np.float32))
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    known = len(labels) and 0 <= labels.min() <= labels.max() < len(classes)
    if not (known and probs.isfinite().all()):
        raise ValueError("values out of range")
    files = table["file"].cast(pa.string()).to_pylist() if "file" in table.column_names else ()
    return Predictions(probs, labels, tuple(map(str, files)), split)
