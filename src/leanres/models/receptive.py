"""Receptive fields: the rule by which each operator propagates them from its inputs to its result.

A receptive field is a `Span` of rows and one of columns. It says which input pixels position i of a
feature map depends on, for every i at once:

- A convolution or pool widens the span and multiplies its jump by the stride.
- A sum or concatenation takes the union of its inputs' spans.
- A global pool, or a linear layer on a flattened map, takes the union over all positions; from then
  on every position depends on the same pixels (a jump of 0).
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

    Pixels outside the image (padding) count. With a jump of 0 all positions depend on the same
    pixels.
    """

    low: int = 0
    high: int = 0
    jump: int = 1

    @property
    def size(self) -> int:
        """Pixels that one position depends on."""
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Span:
        """The span after a convolution or pool along this axis."""
        low = self.low - padding * self.jump
        extent = dilation * (kernel - 1) * self.jump
        return Span(low, self.high - padding * self.jump + extent, self.jump * stride)

    def whole(self, length: int) -> Span:
        """The union of the spans of all `length` positions."""
        return Span(self.low, self.high + (length - 1) * self.jump, 0)


Field = tuple[Span, Span]  # a receptive field: rows, columns
PIXEL: Field = (Span(), Span())


def field_size(field: Field | None) -> int | None:
    """The longer side of a receptive field, in pixels; None where it is unknown."""
    return None if field is None else max(span.size for span in field)


@dataclass(frozen=True)
class OperatorCall:
    """A call of one operator: arguments by name, input maps with their fields, the result."""

    func: OpOverload[..., Any]
    named: dict[str, Any]
    inputs: list[tuple[Tensor, Field]]
    out: Any

    @property
    def packet(self) -> object:
        """The operator without its overload, such as `aten.add`."""
        return self.func.overloadpacket

    @property
    def windowed(self) -> bool:
        """Whether this is a convolution or pool of a feature map."""
        return self.packet in WINDOWED and self.inputs[0][0].ndim == 4

    @property
    def result(self) -> Tensor:
        """The (first) tensor that it returns."""
        first: Tensor = self.out[0] if isinstance(self.out, tuple | list) else self.out
        return first

    def unsupported(self, why: str) -> UserError:
        """The error for an operator whose receptive field is unknown."""
        return UserError(f"cannot follow the receptive field through {self.func} ({why})")


def propagate(call: OperatorCall) -> Field:
    """The receptive field of the result of `call`. UserError naming an operator without a rule."""
    rule = SPAN_RULES.get(call.packet)
    constant = all(_is_constant(field) for _, field in call.inputs)
    if constant or (rule is None and torch.Tag.pointwise in call.func.tags):
        rule = _union
    if rule is None:
        raise call.unsupported("it has no rule")
    return rule(call, 0), rule(call, 1)


def _is_constant(field: Field) -> bool:
    """Whether every position depends on the same pixels."""
    return all(span.jump == 0 for span in field)


def is_global_pool(call: OperatorCall, field: Field) -> bool:
    """Whether the call reduces a larger map to one position, with the result `field`.

    That is a global pool, or a flatten.
    """
    source, result = call.inputs[0][0], call.result
    if source.ndim != 4 or source.shape[-2:].numel() == 1:
        return False
    if call.packet not in POOLS | REDUCE | RESHAPE:
        return False
    return result.shape[-2:].numel() == 1 if result.ndim == 4 else _is_constant(field)


def slide(call: OperatorCall, field: Field) -> Field:
    """The receptive field after a convolution or pool whose input has `field`."""
    return _slide_along(call, 0, field[0]), _slide_along(call, 1, field[1])


def _slide_along(call: OperatorCall, axis: int, span: Span) -> Span:
    named = call.named
    if call.packet in ADAPTIVE:
        length, outputs = call.inputs[0][0].shape[axis - 2], call.result.shape[axis - 2]
        if length % outputs:
            raise call.unsupported(f"windows of several sizes, from {length} to {outputs} pixels")
        kernel = stride = length // outputs
    else:
        sizes = named["weight"].shape[2:] if "weight" in named else named["kernel_size"]
        kernel = _along(axis, sizes)
        stride = _along(axis, named["stride"] or sizes)
    padding = _along(axis, named.get("padding", 0))
    return span.window(kernel, stride, padding, _along(axis, named.get("dilation", 1)))


def _along(axis: int, value: int | Sequence[int]) -> int:
    """An argument of an operator, which is one number or one per axis, for this axis."""
    return value if isinstance(value, int) else value[axis % len(value)]


# Rules: the span of a call's result along an axis, 0 for rows and 1 for columns.


def _window(call: OperatorCall, axis: int) -> Span:
    if call.named.get("transposed") or call.inputs[0][0].ndim != 4:
        raise call.unsupported("not a plain two-dimensional window")
    return _slide_along(call, axis, call.inputs[0][1][axis])


def _union(call: OperatorCall, axis: int) -> Span:
    """The union of the spans of all inputs."""
    if call.packet in CHANNELS and call.named["dim"] not in (1, 1 - call.result.ndim):
        raise call.unsupported("along another axis than the channels")
    spans = [field[axis] for _, field in call.inputs]
    if len({span.jump for span in spans}) > 1:
        lengths = [source.shape[axis - 2] for source, _ in call.inputs]
        if all(span.jump and length > 1 for span, length in zip(spans, lengths, strict=True)):
            raise call.unsupported("maps of different strides")
        # A globally pooled value, broadcast to a map (squeeze-and-excitation), makes every position
        # depend on the whole map.
        spans = [span.whole(length) for span, length in zip(spans, lengths, strict=True)]
    return Span(min(s.low for s in spans), max(s.high for s in spans), spans[0].jump)


def _reduce(call: OperatorCall, axis: int) -> Span:
    source, field = call.inputs[0]
    dims = call.named.get("dim") or list(range(source.ndim))
    given = {d % source.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    reduced = [source.ndim - 2 in given, source.ndim - 1 in given]
    if any(reduced) and not all(reduced) and not call.named.get("keepdim"):
        raise call.unsupported("it drops one side of a map")
    return field[axis].whole(source.shape[axis - 2]) if reduced[axis] else field[axis]


def _reshape(call: OperatorCall, axis: int) -> Span:
    source, field = call.inputs[0]
    if call.result.ndim > 2 and call.result.shape[-2:] == source.shape[-2:]:
        return field[axis]
    if call.result.ndim > 3 and source.shape[-2:].numel() > 1:
        raise call.unsupported(f"from {tuple(source.shape)} to {tuple(call.result.shape)}")
    return field[axis].whole(source.shape[axis - 2])


def _slice(call: OperatorCall, axis: int) -> Span:
    source, field = call.inputs[0]
    if call.named["dim"] % source.ndim != source.ndim - 2 + axis:
        return field[axis]
    start = call.named["start"] or 0
    start += source.shape[axis - 2] if start < 0 else 0
    # A slice is a 1x1 window with stride `step` and a padding of -start.
    return field[axis].window(1, call.named["step"], -start)


def _pad(call: OperatorCall, axis: int) -> Span:
    before = [*call.named["pad"], 0, 0, 0][2 - 2 * axis]  # PyTorch lists columns first
    return call.inputs[0][1][axis].window(1, 1, before)


ADAPTIVE = {aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d, *ADAPTIVE}
WINDOWED = {aten.convolution, *POOLS}
REDUCE = {aten.mean, aten.sum, aten.amax, aten.amin}
RESHAPE = {aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze}
CHANNELS = {aten.cat, aten.split}
# Pointwise in space, although PyTorch does not tag them so. The statistics of a norm are ignored.
NORMS = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit,
}
POINTWISE = {
    *NORMS,
    *CHANNELS,
    aten.alias,
    aten.detach,
    aten._to_copy,
    aten.hardswish,
    aten.hardswish_,
}
SPAN_RULES: dict[object, Callable[[OperatorCall, int], Span]] = {
    **dict.fromkeys(WINDOWED, _window),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(RESHAPE, _reshape),
    **dict.fromkeys(POINTWISE, _union),
    aten.slice: _slice,
    aten.constant_pad_nd: _pad,
}
