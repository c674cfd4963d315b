"""What a network costs, counted on the real network: parameters, MACs, receptive field, size.

Rules of the count:

- `params`: every `nn.Parameter`, trainable or frozen, shared ones once; buffers do not count. So
  it equals `sum(p.numel() for p in model.parameters())`. A row holds the parameters that its layer
  was the first to use.
- `macs`: multiply-accumulates of convolutions and matrix products for one image, half of what
  `torch.utils.flop_counter` counts; norms, activations, pools and sums are free.
- `receptive_field`: side in pixels of the square of input that one position of the last map
  depends on, before the global pool; exact, the union over branches and residual sums, padding
  included, so it may exceed the image. `global_receptive_field` is the same with the pool.
- `chained_receptive_field`: every convolution and pool in execution order, each fed by the one
  before it, parallel branches and 1x1 strided shortcuts included; slices and the global pool (the
  one that leaves 1x1 of a larger map) are not. What layer-listing summary tools print.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import nn

from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.receptive import field_size
from leanres.models.trace import Row, Trace

BYTES = {"float32": 4, "float16": 2, "int8": 1}
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Summary:
    """Costs of a network for one image of `input_size` (3, H, W); see the module for the rules."""

    input_size: tuple[int, int, int]
    rows: tuple[Row, ...]
    params: int
    macs: int
    receptive_field: int
    global_receptive_field: int
    chained_receptive_field: int

    @property
    def size_mib(self) -> dict[str, float]:
        """MiB of the parameters by number format."""
        return {name: self.params * size / 2**20 for name, size in BYTES.items()}

    def within(self, budget: int) -> bool:
        """Whether the network has at most `budget` parameters."""
        return self.params <= budget

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        rows = [{**asdict(row), "shape": list(row.shape)} for row in self.rows]
        totals = {key: value for key, value in asdict(self).items() if key != "rows"}
        size = list(self.input_size)
        return {**totals, "input_size": size, "size_mib": self.size_mib, "rows": rows}


def summarize(
    network: ModelConfig | nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)
) -> Summary:
    """Cost of `network`, from one run on the meta device; a given module is left as it is.

    Raises `UserError` where the input does not fit or an operator has no receptive-field rule.
    """
    model = _on_meta(network).eval()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    trace = Trace(model)
    try:
        seen = trace.run(model, torch.empty(1, *input_size, dtype=dtype, device="meta"))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"images of {input_size} do not fit this network: {reason}") from error
    return Summary(
        input_size=input_size,
        rows=tuple(trace.rows),
        params=count_params(model),
        macs=sum(row.macs for row in trace.rows),
        receptive_field=field_size(trace.before_pool or seen),
        global_receptive_field=field_size(seen),
        chained_receptive_field=field_size(trace.chain),
    )


def count_params(network: ModelConfig | nn.Module) -> int:
    """Parameters, trainable or frozen, shared ones once; buffers do not count."""
    model = network if isinstance(network, nn.Module) else _on_meta(network)
    return sum(p.numel() for p in model.parameters())


def parse_count(text: str) -> int:
    """`"5M"`, `"2.5m"`, `"300k"` or `"4_970_000"` as a whole number above 0, else `UserError`."""
    match = re.fullmatch(r"(\d+(?:_\d+)*(?:\.\d+)?)([kmg]?)", text.strip().lower(), re.ASCII)
    if match:
        count = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2]]
        if count > 0 and count == int(count):
            return int(count)
    raise UserError(f"{text!r} is no count: give a whole number above 0, such as 300k or 2.5M")


def _on_meta(network: ModelConfig | nn.Module) -> nn.Module:
    if not isinstance(network, nn.Module):
        with torch.device("meta"):
            return network.build()
    # Meta twins handed to deepcopy as already copied: no data moves, shared tensors stay shared
    # (Module.to would part them).
    twins: dict[int, Any] = {id(b): b.to("meta") for b in network.buffers()}
    for p in network.parameters():
        twins[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(network, twins)
