"""How far a map sees: the rule by which each operator passes a receptive field on.

A field is a `Span` of rows and one of columns. `follow` gives the field of an operator's result
from those of its inputs: windows widen it, sums take the union, a global pool takes in the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from leanres.errors import UserError

aten = torch.ops.aten


@dataclass(frozen=True)
class Span:
    """One axis of a map: position i depends on the pixels jump * i + low to jump * i + high.

    Pixels outside the image (padding) count. A jump of 0: every position depends on the same ones.
    """

    low: int = 0
    high: int = 0
    jump: int = 1

    @property
    def size(self) -> int:
        """Pixels that one position sees."""
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Span:
        """What a position sees after a convolution or pool along this axis."""
        low = self.low - padding * self.jump
        reach = dilation * (kernel - 1) * self.jump
        return Span(low, self.high - padding * self.jump + reach, self.jump * stride)

    def whole(self, length: int) -> Span:
        """What all `length` positions see together."""
        return Span(self.low, self.high + (length - 1) * self.jump, 0)


Field = tuple[Span, Span]  # rows, columns
PIXEL: Field = (Span(), Span())


def field_size(of: Field) -> int:
    """The longer side of a receptive field, in pixels."""
    return max(span.size for span in of)


@dataclass(frozen=True)
class Call:
    """One operator: arguments by name, the maps it reads with what they see, its result."""

    func: OpOverload[..., Any]
    named: dict[str, Any]
    maps: list[tuple[Tensor, Field]]
    out: Any

    @property
    def packet(self) -> object:
        """The operator without its overload, such as `aten.add`."""
        return self.func.overloadpacket

    @property
    def windowed(self) -> bool:
        """Whether this is a convolution or a pool of a map."""
        return self.packet in WINDOWED and self.maps[0][0].ndim == 4

    @property
    def result(self) -> Tensor:
        """The (first) tensor it gives."""
        first: Tensor = self.out[0] if isinstance(self.out, tuple | list) else self.out
        return first

    def unclear(self, why: str) -> UserError:
        """The error for an operator whose field cannot be told."""
        return UserError(
            f"cannot follow the receptive field through {self.func} ({why}): "
            "use convolutions, pools, sums, concatenation and pointwise operators"
        )


def follow(call: Call) -> Field:
    """What the result of `call` sees. Raises `UserError` naming an operator without rule."""
    return _rule(call)(call)


def _rule(call: Call) -> Callable[[Call], Field]:
    if all(_is_flat(seen) for _, seen in call.maps):
        return _join
    if call.packet in RULES:
        return RULES[call.packet]
    if torch.Tag.pointwise in call.func.tags:
        return _join
    raise call.unclear("it has no rule")


def _is_flat(seen: Field) -> bool:
    return all(span.jump == 0 for span in seen)


def is_global_pool(call: Call, seen: Field) -> bool:
    """Whether the call leaves one position of a larger map: a global pool, or a flatten."""
    source, result = call.maps[0][0], call.result
    if source.ndim != 4 or source.shape[-2:].numel() == 1:
        return False
    if call.packet not in POOLS | REDUCE | RESHAPE:
        return False
    return result.shape[-2:].numel() == 1 if result.ndim == 4 else _is_flat(seen)


def _window(call: Call) -> Field:
    if call.named.get("transposed") or call.maps[0][0].ndim != 4:
        raise call.unclear("not a plain two-dimensional window")
    return slide(call, call.maps[0][1])


def slide(call: Call, seen: Field) -> Field:
    """What a position of a convolution or pool sees, whose input sees `seen`."""
    named, packet = call.named, call.packet
    if packet in ADAPTIVE:
        kernel = stride = _adaptive_kernel(call)
    else:
        kernel = _pair(named["weight"].shape[2:] if "weight" in named else named["kernel_size"])
        stride = _pair(named["stride"]) if named["stride"] else kernel
    padding, dilation = _pair(named.get("padding", 0)), _pair(named.get("dilation", 1))
    rows, columns = (
        span.window(*sizes)
        for span, *sizes in zip(seen, kernel, stride, padding, dilation, strict=True)
    )
    return rows, columns


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _adaptive_kernel(call: Call) -> tuple[int, int]:
    lengths, outputs = call.maps[0][0].shape[-2:], call.result.shape[-2:]
    if any(length % output for length, output in zip(lengths, outputs, strict=True)):
        raise call.unclear(f"windows of several sizes from {tuple(lengths)} to {tuple(outputs)}")
    return lengths[0] // outputs[0], lengths[1] // outputs[1]


def _join(call: Call) -> Field:
    """The union of what all inputs see, axis by axis."""
    if call.packet in CHANNELS and call.named["dim"] not in (1, 1 - call.result.ndim):
        raise call.unclear("along another axis than the channels")
    rows, columns = (_join_axis(call, axis) for axis in (0, 1))
    return rows, columns


def _join_axis(call: Call, axis: int) -> Span:
    spans = [seen[axis] for _, seen in call.maps]
    if len({span.jump for span in spans}) > 1:
        lengths = [source.shape[axis - 2] for source, _ in call.maps]
        if all(span.jump and length > 1 for span, length in zip(spans, lengths, strict=True)):
            raise call.unclear("maps of different strides")
        # A pooled value that meets a map (squeeze-excite) makes every position see it all.
        spans = [span.whole(length) for span, length in zip(spans, lengths, strict=True)]
    return Span(min(s.low for s in spans), max(s.high for s in spans), spans[0].jump)


def _reduce(call: Call) -> Field:
    source, (rows, columns) = call.maps[0]
    dims = call.named.get("dim") or list(range(source.ndim))
    given = {d % source.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    reduced = [source.ndim - 2 in given, source.ndim - 1 in given]
    if any(reduced) and not all(reduced) and not call.named.get("keepdim"):
        raise call.unclear("it drops one side of a map")
    height, width = source.shape[-2:]
    return (
        rows.whole(height) if reduced[0] else rows,
        columns.whole(width) if reduced[1] else columns,
    )


def _reshape(call: Call) -> Field:
    source, (rows, columns) = call.maps[0]
    if call.result.ndim > 2 and call.result.shape[-2:] == source.shape[-2:]:
        return rows, columns
    height, width = source.shape[-2:]
    if call.result.ndim > 3 and height * width > 1:
        raise call.unclear(f"from {tuple(source.shape)} to {tuple(call.result.shape)}")
    return rows.whole(height), columns.whole(width)


def _slice(call: Call) -> Field:
    source, seen = call.maps[0]
    axis = call.named["dim"] % source.ndim - (source.ndim - 2)
    start, step = call.named["start"] or 0, call.named["step"]
    start += source.shape[axis - 2] if start < 0 else 0
    # A slice is a window of one pixel: starting later is a negative padding.
    rows, columns = (
        span.window(1, step, -start) if i == axis else span for i, span in enumerate(seen)
    )
    return rows, columns


def _pad(call: Call) -> Field:
    rows, columns = call.maps[0][1]
    pad = [*call.named["pad"], 0, 0, 0]
    return rows.window(1, 1, pad[2]), columns.window(1, 1, pad[0])


ADAPTIVE = {aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d, *ADAPTIVE}
WINDOWED = {aten.convolution, *POOLS}
REDUCE = {aten.mean, aten.sum, aten.amax, aten.amin}
RESHAPE = {aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze}
CHANNELS = {aten.cat, aten.split}
# Pointwise in space though PyTorch does not tag them so; statistics of a norm do not count.
POINTWISE = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit,
    *CHANNELS,
    aten.alias,
    aten.detach,
    aten._to_copy,
    aten.hardswish,
    aten.hardswish_,
}
RULES: dict[object, Callable[[Call], Field]] = {
    **dict.fromkeys(WINDOWED, _window),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(RESHAPE, _reshape),
    **dict.fromkeys(POINTWISE, _join),
    aten.slice: _slice,
    aten.constant_pad_nd: _pad,
}
