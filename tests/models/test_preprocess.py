"""Normalisation of a network's input."""

from __future__ import annotations

import numpy as np
import torch

from leanres.models.preprocess import Normalize


def test_normalize_equals_numpy_and_is_channels_last():
    images = torch.randint(256, (5, 3, 7, 6), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    result = Normalize(mean, std)(images)
    pixels = images.numpy().astype(np.float64) / 255
    oracle = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(result.numpy(), oracle, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8
