"""Quantise an ONNX graph to int8: QDQ, static, a scale per output channel, from training images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

BATCH = 50  # calibration images at a time
# Everything else, normalisation and softmax among it, stays in float32: it is small, and rounding
# the normalised pixels costs accuracy.
QUANTISED = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Add"]


def quantized(proto: Any, images: Tensor) -> Any:
    """The ModelProto with QuantizeLinear and DequantizeLinear around its layers, weights as int8.

    Ranges of the activations are those of `images`, uint8 (N, C, size, size). Any runtime that
    reads QDQ computes such a graph in integers (ONNX Runtime, OpenVINO, TensorRT).
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            out,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=QUANTISED,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(out)


class _Batches:
    """A CalibrationDataReader of ONNX Runtime, which asks for batches until None comes."""

    def __init__(self, images: Tensor) -> None:
        self.parts: Iterator[Tensor] = iter(torch.split(images, BATCH))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, by the name of the graph's input."""
        part = next(self.parts, None)
        return None if part is None else {"images": part.numpy()}
