"""The handwritten digits embedded in scikit-learn: 1,797 grey images of 8x8 pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from leanres.data.sources.source import LoadOptions
from leanres.data.split import Dataset, Split, stratified_split
from leanres.errors import UserError

NUM_TEST = 360  # of 1,797


def load_embedded_digits(options: LoadOptions) -> Dataset:
    """The digits enlarged bilinearly to `options.size`, grey as RGB; 360 of them are test."""
    from sklearn.datasets import load_digits

    if options.path is not None:
        raise UserError(f"digits are embedded and need no path, got {options.path}; leave it out")
    bunch = load_digits()
    levels = torch.from_numpy(bunch.images.astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    classes = tuple(str(name) for name in bunch.target_names)
    small = Split(levels, torch.from_numpy(bunch.target.astype(np.int64)), classes)
    # Split before enlarging: rounding may differ between machines, and the split must not.
    train, test = (_enlarged(part, options.size) for part in stratified_split(small, NUM_TEST))
    notes = (f"8x8 digits enlarged bilinearly to {options.size}x{options.size}, grey as RGB",)
    return Dataset("digits", train, None, test, notes, "scikit-learn's digits, embedded")


def _enlarged(split: Split, size: int) -> Split:
    """Levels 0..16 of (N, 3, 8, 8), all channels alike -> pixels 0..255 of (N, 3, size, size)."""
    large = F.interpolate(split.images[:, :1].double(), size=(size, size), mode="bilinear")
    pixels = (large * (255 / 16)).round().to(torch.uint8)
    return Split(pixels.repeat(1, 3, 1, 1), split.labels, split.classes)
