"""Peak memory of the activations of one inference, by a walk over the operators in their order.

A map is allocated by the operator that makes it and freed after the last one that reads it. Views
share the memory of what they view. A pointwise operator or a norm writes over an input that is not
read again, as runtimes on devices do, which fold norms and activations into the layer before. Not
counted: weights, the scratch space of an operator, and results that nothing reads, such as the
positions that a max-pool returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """An operator's call: the maps that it reads, those that it returns, whether it overwrites."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    in_place: bool  # it may write its result over an input that is not read again


def peak_elements(operations: Sequence[Operation], constants: Iterable[Tensor]) -> int:
    """The most elements that live at once: times 4 the bytes in float32, times 1 in int8.

    constants: parameters and buffers, which are not counted. The last operation's results live to
    the end. Every tensor must still exist, as memory is recognised by its address.
    """
    uncounted = {_memory(tensor) for tensor in constants}
    last = _last_reads(operations)
    owner: dict[int, int] = {}  # memory -> the one that it was written over
    sizes: dict[int, int] = {}  # of what is allocated now
    ends: dict[int, int] = {}
    peak = 0
    for i, operation in enumerate(operations):
        reads = {_memory(tensor): tensor for tensor in operation.inputs}
        for key, tensor in reads.items():
            if key not in uncounted and key not in owner:  # the network's own input
                owner[key], sizes[key], ends[key] = key, tensor.numel(), last[key]
        free = [owner[k] for k in reads if k in owner and ends[owner[k]] == i]
        for tensor in operation.outputs:
            key = _memory(tensor)
            if key in owner or key in uncounted or last.get(key, -1) <= i:
                continue
            fits = [k for k in free if operation.in_place and sizes[k] == tensor.numel()]
            owner[key] = fits[0] if fits else key
            if fits:
                free.remove(fits[0])
            else:
                sizes[key] = tensor.numel()
            ends[owner[key]] = last[key]
        peak = max(peak, sum(sizes.values()))
        for key in [key for key in sizes if ends[key] <= i]:
            del sizes[key]
    return peak


def _last_reads(operations: Sequence[Operation]) -> dict[int, int]:
    """Memory -> the last operation that reads it; the network's results are read after the end."""
    last: dict[int, int] = {}
    for i, operation in enumerate(operations):
        last |= {_memory(tensor): i for tensor in operation.inputs}
    for tensor in operations[-1].outputs if operations else ():
        last[_memory(tensor)] = len(operations)
    return last


def _memory(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others; its views have the same."""
    return int(tensor.untyped_storage()._cdata)


def writes_over(func: torch._ops.OpOverload[..., object], norms: Iterable[object]) -> bool:
    """Whether an operator's result may take the place of an input: pointwise ones and norms."""
    return torch.Tag.pointwise in func.tags or func.overloadpacket in norms
